"""What MkDocs calls while it builds the site: pages from recorded results, links to them, names of code checked."""

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pages import place_of, result_pages  # noqa: E402

log = logging.getLogger("mkdocs.hooks")  # with --strict a warning fails the build
RESULT_LINK = re.compile(r"\]\((?:\.\./)+benchmarks/results/([\w-]+)\.md\)")
NAME = re.compile(r"`((?:rarec|assets|resources|pipelines)(?:\.\w+){2,})`")  # not `rarec.rolled_back`, a tag
PLACES = "rarec|assets|resources|pipelines|benchmarks|tests|docker|docs|requirements"
FILE = re.compile(rf"`((?:{PLACES})/(?:[\w-]+/)*(?:[\w-][\w.-]*\.\w+)?)`")


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
        for name in sorted({*NAME.findall(markdown), *FILE.findall(markdown)}):
            if not _exists(name):
                log.warning("%s names `%s`, which the code does not have", page.file.src_uri, name)
    return RESULT_LINK.sub(link, markdown)


def _exists(name: str) -> bool:
    """Whether there is such a file or folder, or such a name in a module."""
    if "/" in name:
        return (ROOT / name).exists()
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if not parts:
        return True
    if (place / f"{parts[0]}.py").is_file():
        place /= f"{parts.pop(0)}.py"
    else:
        place /= "__init__.py"
    source = place.read_text() if place.is_file() else ""
    return all(re.search(rf"\b(def|class) {part}\b|^\s*{part}\b.*[:=]", source, re.MULTILINE) for part in parts)
