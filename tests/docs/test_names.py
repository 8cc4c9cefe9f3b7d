"""What the pages call by name exists; `make docs` warns of the same."""

import sys

import pytest
from places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def names(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.delitem(sys.modules, "names", raising=False)
    import names

    yield names
    sys.modules.pop("names", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_there_is(names, page):
    assert names.missing(page.read_text()) == []


def test_what_is_gone_is_found(names):
    page = "See `rarec.data.spec.DatasetSpec`, `rarec.data.spec.Gone`, `tests/docs/test_names.py` and `tests/gone.py`."
    assert names.missing(page) == ["rarec.data.spec.Gone", "tests/gone.py"]
