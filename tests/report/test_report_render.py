"""All kinds of documents as Markdown, HTML and on a terminal; names are never markup."""

import io
import re
from html.parser import HTMLParser

import pytest
from report_cases import EVIL, comparison, report, student, table1, unmeasured
from rich.console import Console

from freia_kd.report import render
from freia_kd.report.comparison import comparison_document
from freia_kd.report.document import Code, Document, Figure, Section, Table
from freia_kd.report.run import run_document
from freia_kd.report.table1 import table1_document

DOCUMENTS = {
    "run": run_document(report(student(), student("3"))),
    "unmeasured": run_document(unmeasured()),
    "comparison": comparison_document(comparison()),
    "table1": table1_document(table1()),
}
VOID = {"meta", "img"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


class Page(HTMLParser):
    """Reads a page, and fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


@pytest.fixture(params=DOCUMENTS)
def document(request):
    return DOCUMENTS[request.param]


def printed(document, **options):
    console = Console(file=io.StringIO(), width=200)
    render.terminal(document, console=console, **options)
    return console.file.getvalue()


def test_a_page_is_sound_and_asks_nothing_of_the_network(document, tmp_path):
    text = render.html(document, tmp_path)
    page = Page(text)
    assert page.all("script") == []
    assert EVIL in page.text
    assert page.all("link") == []
    assert not re.search(r"(src|href)=[\"']?(?!data:)", text)
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.all("html") == [{"lang": "en"}]
    assert document.title in page.text
    assert all(sentence in page.text for sentence in document.verdict)
    assert all(attrs["scope"] for attrs in page.all("th"))
    assert len(text) < 60_000


def test_pictures_are_inside_and_described(tmp_path):
    assert Page(render.html(DOCUMENTS["run"], tmp_path)).all("img") == []
    (tmp_path / "curves.png").write_bytes(PIXEL)
    (picture,) = Page(render.html(DOCUMENTS["run"], tmp_path)).all("img")
    assert picture["src"].startswith("data:image/png;base64,iVBOR")
    assert "loss" in picture["alt"]
    assert "](<curves.png>)" in render.markdown(DOCUMENTS["run"], tmp_path)
    assert "](<curves.png>)" not in render.markdown(DOCUMENTS["run"], tmp_path / "elsewhere")


def test_a_section_of_pictures_that_are_missing_is_left_out(tmp_path):
    only = Document("title", [], [Section("Pictures", [Figure("a.png", "alt", "caption")])])
    assert "Pictures" not in render.html(only, tmp_path) + render.markdown(only, tmp_path)
    assert "Pictures" not in printed(only, details=True)


def test_a_name_is_escaped_in_attributes_too(tmp_path):
    (tmp_path / "a.png").write_bytes(PIXEL)
    evil = '"><script>alert(1)</script>'
    blocks = [Figure("a.png", evil, evil), Table([evil], [[evil]]), Code(evil, evil), evil]
    page = Page(render.html(Document(evil, [evil], [Section(evil, blocks)]), tmp_path))
    assert page.all("script") == []
    assert page.all("img")[0]["alt"] == evil


def test_markdown_keeps_its_tables_and_runs_no_name(document, tmp_path):
    text = render.markdown(document, tmp_path)
    assert text.startswith(f"# {document.title}\n")
    body = re.sub(r"```.*?```", "", text, flags=re.S)
    assert "<script>" not in body
    assert "\\<script\\>" in body
    tables = re.findall(r"(?:^\|.*\n?)+", body, flags=re.M)
    assert tables
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_markdown_cannot_leave_its_code(tmp_path):
    text = render.markdown(Document("t", [], [Section("s", [Code("a\n```\n<b>")])]), tmp_path)
    assert text.count("````") == 2


def test_a_terminal_shows_results_first_and_details_on_demand(document):
    short, long = printed(document), printed(document, details=True)
    assert len(short) < len(long)
    assert all(sentence in short.replace("\n", " ") for sentence in document.verdict)
    assert "How it was made" not in short
    assert "How it was made" in long


def test_a_terminal_takes_no_name_for_markup():
    blocks = [EVIL, Table([EVIL, ""], [["", EVIL]]), Code(EVIL)]
    text = printed(Document(EVIL, [EVIL], [Section(EVIL, blocks)]))
    assert text.count(EVIL) == 6
