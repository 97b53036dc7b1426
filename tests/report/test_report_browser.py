"""Pages in a real browser, where there is one: on a phone, in the dark, without a network."""

import html
import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from report_cases import comparison, report, student, table1

from freia_kd.report import plots
from freia_kd.report.storage import write_comparison, write_report, write_table1

# Measures the page and the contrast of its text to what is behind it, as WCAG 2 defines it.
PROBE = """<script>
const light = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ground = e => { const c = getComputedStyle(e).backgroundColor;
  return c.match(/[\\d.]+/g)[3] === '0' && e.parentElement ? ground(e.parentElement) : c; };
let least = 99;
for (const e of document.querySelectorAll('body, p, td, th, li, figcaption, summary, pre')) {
  const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
  least = Math.min(least, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)); }
parent.seen[frameElement.id] = { wide: document.documentElement.scrollWidth, least,
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  scrolled: (scrollTo(999, 0), scrollX),
  plots: Math.min(...[...document.querySelectorAll('.plot img')]
    .map(i => i.clientWidth / Math.min(i.naturalWidth, 640))),
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
  asked: [...new Set([...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href))]
    .concat(performance.getEntriesByType('resource').map(e => e.name))
    .filter(url => !url.startsWith('data:')) };
</script>"""
WIDTHS = (400, 1100)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page that holds every kind of page at every width, and says what it saw."""
    folder = tmp_path_factory.mktemp("pages")
    grid = plots.plot_grid(torch.rand(100, 1, 28, 28), range(10))
    plots.write_png(folder / "synthetic-bdnf.png", grid)
    with pytest.MonkeyPatch.context() as patch:  # with pictures of their real sizes
        patch.setattr("freia_kd.report.storage.write_png", plots.write_png)
        write_report(folder, report(student(), student("a-rather-long-name-of-a-student")))
        write_comparison(folder, comparison())
    write_table1(folder, table1())
    frames = [
        f'<iframe id="{path.stem} {width}" style="width:{width}px;border:0" srcdoc="'
        f'{html.escape(path.read_text().replace("</body>", f"{PROBE}</body>"))}"></iframe>'
        for path in folder.glob("*.html")
        for width in WIDTHS
    ]
    said = "<script>onload = () => { document.title = JSON.stringify(seen) }</script>"
    holder = folder / "all.html"
    holder.write_text(f"<title>none</title><script>seen = {{}}</script>{''.join(frames)}{said}")
    return holder


def browse(url, profile, *options):
    """The page as a browser without a window leaves it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-background-networking", "--disable-component-update", *options]
    command += [f"--user-data-dir={profile}", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_a_phone_and_can_be_read(dark, pages, tmp_path):
    dumped = browse(
        pages.as_uri(), tmp_path, f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    )
    title = re.search(r"<title>(.*?)</title>", dumped, re.DOTALL).group(1)
    seen = json.loads(html.unescape(title))
    assert len(seen) == 3 * len(WIDTHS)
    for name, page in seen.items():
        assert page["wide"] <= int(name.split()[1]), name
        assert page["least"] >= 4.5, name
        assert page["dark"] == dark
        assert page["scrolled"] == 0, name
        assert page["broken"] == 0, name
        if not name.startswith("table1"):  # which has no plots
            assert page["plots"] >= 1, name  # whose words can be read
        assert page["asked"] == [], name


@pytest.fixture(scope="module")
def server():
    """A server of this machine that remembers who asked it for what."""

    class Remembering(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Remembering) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_pages_ask_the_network_for_nothing(pages, server, tmp_path):
    # Whatever a page asks the network for, wherever, it asks this server.
    proxy = f"--proxy-server=127.0.0.1:{server.server_port}"
    folder = pages.parent
    texts = {path: path.read_text() for path in sorted(folder.glob("*.html")) if path != pages}
    assert len(texts) == 3
    for path in texts:
        browse(path.as_uri(), tmp_path, proxy)
    assert [path for path in server.asked if "google" not in path and "gstatic" not in path] == []
    (folder / "caught.html").write_text(
        texts[path].replace("</body>", '<img src="http://elsewhere.example/pixel.png"></body>')
    )
    browse((folder / "caught.html").as_uri(), tmp_path, proxy)
    assert "http://elsewhere.example/pixel.png" in server.asked
