"""What MkDocs calls while it builds the site: pages from recorded results, links to them, names of code checked."""

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import names  # noqa: E402

from benchmarks.pages import place_of, result_pages  # noqa: E402

log = logging.getLogger("mkdocs.hooks")  # with --strict a warning fails the build
RESULT_LINK = re.compile(r"\]\((?:\.\./)+benchmarks/results/([\w-]+)\.md\)")


def on_config(config: Any) -> None:
    """Give every page of results a place in the navigation."""
    section = next(entry for entry in config.nav if "Results" in entry)
    section["Results"] += [f"results/{name}.md" for name in result_pages()]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not written by hand."""
    generated = {f"results/{name}.md": text for name, text in result_pages().items()}
    generated["changelog.md"] = (ROOT / "CHANGELOG.md").read_text()
    for path, text in generated.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of results into links to their pages, and check the names of code."""
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        place = place_of(found[1])
        return f"]({posixpath.relpath(place, here or '.')})" if place else found[0]

    if page.file.src_uri != "changelog.md":  # what was changed may be gone by now
        for name in names.missing(markdown):
            log.warning("%s names `%s`, which the code does not have", page.file.src_uri, name)
    return RESULT_LINK.sub(link, markdown)
