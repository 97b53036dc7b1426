"""The page about flows runs, from top to bottom."""

import re
from pathlib import Path

import pytest
from flow_laws import CAN_EXPORT

PAGE = Path(__file__).parents[2] / "docs" / "flows.md"


@pytest.mark.skipif(not CAN_EXPORT, reason="torch.export refuses autocast before 2.5")
def test_all_snippets_of_the_page_run():
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 9
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)  # our own page
    assert names["posterior"].shape == (2, 10)
    assert names["path"].shape == (8, 1, 1, 8, 8)
    assert names["x"].shape == (2, 3, 8, 8)
