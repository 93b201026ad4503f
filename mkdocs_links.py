"""Links that mkdocs leaves as they are: those of notebooks, and pages that docstrings name as docs/page.md."""

from __future__ import annotations

import logging
import re
from typing import Any

log = logging.getLogger("mkdocs.plugins.links")  # a warning of mkdocs' loggers fails a strict build


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """Turn them into links to the pages of the site; warn of one that is not there."""

    def address(name: str, anchor: str) -> str:
        file = files.get_file_from_path(name)
        if file is None:
            log.warning("%s: there is no page %s", page.file.src_uri, name)
            return name
        return f"{file.url_relative_to(page.file)}{anchor}"

    def of_notebook(found: re.Match[str]) -> str:
        return f'href="{address(found[1], found[2] or "")}"'

    def named(found: re.Match[str]) -> str:
        return f'<a href="{address(found[1] + ".md", "")}">{found[1]}</a>'

    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'href="([\w/]+\.(?:md|ipynb))(#[\w-]*)?"', of_notebook, html)
    return re.sub(r"(?<![\w/>])docs/(\w+)\.md\b", named, html)
