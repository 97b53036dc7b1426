"""What is said of a version in several places is the same; what hosting sites read is sound."""

import re
from pathlib import Path

import yaml

import freia_kd

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_version_has_its_notes_and_its_citation():
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", notes, re.M)[0]
    cited = CITATION["version"], CITATION["date-released"].isoformat()
    assert newest == cited == (freia_kd.__version__, newest[1])


def test_the_citation_has_what_readers_of_it_need():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert all(reference["authors"] for reference in CITATION["references"])


def test_the_forms_for_issues_are_forms():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem != "config":
            assert {"name", "description", "body"} <= set(content)
            ids = [part["id"] for part in content["body"]]
            assert len(set(ids)) == len(ids)
