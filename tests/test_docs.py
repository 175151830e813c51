"""README and the pages below docs/: short enough to be read, and every link leads somewhere."""

import re

import pytest

from core.datasets.catalog import ENTRIES
from tests.helpers import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
DATA_SETS = PROJECT / "datasets/README.md"


@pytest.mark.parametrize("page", [*PAGES, DATA_SETS], ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_a_page_is_short_and_its_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) <= 12 * 1024
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_every_page_is_linked_from_the_readme():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_every_data_set_known_by_name_has_a_row():
    rows = [line.split("|")[1] for line in DATA_SETS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = " ".join(rows)
    assert [name for name in ENTRIES if f"`{name}_" not in named] == []
