"""Checks a built site: every link leads somewhere, and no page asks the network for anything.

python tools/check_site.py site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Links(HTMLParser):
    """What a page has: its anchors, where it leads, and what a browser fetches for it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors, self.targets, self.fetched = {"", "__top"}, set[str](), set[str]()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.targets.add(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") != "canonical":
            self.fetched.add(given[FETCHED[tag]])


def faults(site: Path) -> list[str]:
    """What is wrong with a site, a sentence each."""
    site = site.resolve()
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    found = []
    for page, links in pages.items():
        name = page.relative_to(site)
        for target in sorted(links.fetched):
            if urlsplit(target).netloc:
                found.append(f"{name} fetches {target}.")
        for target in sorted(links.targets | links.fetched):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                found.append(f"{name} leads to {target}, which is not there.")
            other = pages.get(file)
            if other and unquote(parts.fragment) not in other.anchors:
                found.append(f"{name} leads to {target}, which has no such anchor.")
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "Every link leads somewhere, and nothing is fetched from elsewhere.")
    sys.exit(bool(wrong))
