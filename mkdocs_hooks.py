"""Hooks of the documentation site: links to files outside of docs/ become text.

The pages are read in the repository, too, where such links have targets.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]{1,200})\]\((?P<target>(?!https?:|#)[^)\s]{1,200})\)")
ROOT_PAGES = {"changelog.md"}
"""Pages that include a file of the checkout's root, whose links start there."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave docs/ by their text, and rewrite those of included files."""
    source = page.file.src_uri
    folder = "" if source in ROOT_PAGES else posixpath.join("docs", posixpath.dirname(source))

    def replace(match: re.Match[str]) -> str:
        path, _, anchor = match["target"].partition("#")
        target = posixpath.normpath(posixpath.join(folder, path))
        if not target.startswith("docs/"):
            return match["text"]
        relative = posixpath.relpath(target, posixpath.join("docs", posixpath.dirname(source)))
        return f"[{match['text']}]({relative}{'#' if anchor else ''}{anchor})"

    return LINK.sub(replace, markdown)
