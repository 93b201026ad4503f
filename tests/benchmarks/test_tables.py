import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import quality_figures
import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_committed_results(page):
    assert tables.render(page.read_text()) == page.read_text(), "run: python benchmarks/tables.py"


def test_the_pictures_are_of_the_committed_results():
    assert not quality_figures.stale(), "run: python benchmarks/tables.py"


def test_every_table_is_shown_somewhere():
    shown = {name for page in tables.PAGES for _, name, _ in tables.BLOCK.findall(page.read_text())}
    assert shown == set(tables.TABLES)
