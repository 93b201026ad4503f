import pytest

from benchmarks import tables
from benchmarks.quality import figures


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_committed_results(page):
    assert tables.render(page.read_text()) == page.read_text(), "run: python -m benchmarks.tables"


def test_the_pictures_are_of_the_committed_results():
    assert not figures.stale(), "run: python -m benchmarks.tables"


def test_every_table_is_shown_somewhere():
    shown = {name for page in tables.PAGES for _, name, _ in tables.BLOCK.findall(page.read_text())}
    assert shown == set(tables.TABLES)
