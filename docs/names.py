"""Names of code and files in the documentation's pages: whether the code still has them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"`((?:rarec|assets|resources|pipelines)(?:\.\w+){2,})`")  # not `rarec.rolled_back`, a tag
PLACES = "rarec|assets|resources|pipelines|benchmarks|tests|docker|docs|requirements"
FILE = re.compile(rf"`((?:{PLACES})/(?:[\w-]+/)*(?:[\w-][\w.-]*\.\w+)?)`")


def missing(page: str) -> list[str]:
    """The names in a page of Markdown that the code does not have."""
    return [name for name in sorted({*NAME.findall(page), *FILE.findall(page)}) if not _exists(name)]


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
