"""Links of the site that mkdocs does not turn itself: those of notebooks, and of docs/page.md in docstrings."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest

from mkdocs_links import on_page_content
from tests.snippets import ROOT

DOCS = ROOT / "docs"


def turned(html: str, page: str) -> str:
    def found(name: str):
        there = (DOCS / name).exists()
        return SimpleNamespace(url_relative_to=lambda file: f"../{name.split('.')[0]}/") if there else None

    return on_page_content(
        html, SimpleNamespace(file=SimpleNamespace(src_uri=page)), SimpleNamespace(get_file_from_path=found)
    )


@pytest.mark.parametrize(
    ("html", "page", "becomes"),
    [
        ('<a href="fastai.md#which-loaders">x</a>', "tutorial.ipynb", '<a href="../fastai/#which-loaders">x</a>'),
        ('<a href="tutorial.ipynb">x</a>', "tutorial_torch.ipynb", '<a href="../tutorial/">x</a>'),
        ('<a href="fastai.md">x</a>', "fastai.md", '<a href="fastai.md">x</a>'),  # mkdocs has turned those
        ('<a href="https://a.b/c.md">x</a>', "tutorial.ipynb", '<a href="https://a.b/c.md">x</a>'),
        ("as there (docs/gpu.md).", "api/report.md", 'as there (<a href="../gpu/">gpu</a>).'),
        ("<code>docs/gpu.md</code>", "index.md", "<code>docs/gpu.md</code>"),
    ],
)
def test_a_link_is_turned(html, page, becomes):
    assert turned(html, page) == becomes


def test_a_page_that_is_not_there_fails_a_strict_build(caplog):
    with caplog.at_level(logging.WARNING):
        turned("see docs/no_such_page.md", "index.md")
    assert caplog.records[0].name.startswith("mkdocs.") and "no page no_such_page.md" in caplog.text


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.ipynb")), ids=lambda page: page.stem)
def test_the_links_of_a_notebook_lead_to_pages(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert links and all((DOCS / link).exists() for link in links)


def test_a_docstring_names_pages_that_are_there():
    sources = "\n".join(path.read_text() for path in (ROOT / "adaptbs").rglob("*.py"))
    named = set(re.findall(r"docs/\w+\.md", sources))
    assert named and all((ROOT / name).exists() for name in named)
