"""Pages of the documentation site that are assembled from `benchmarks/results`, and where each result stands there.

A result is a Markdown file. Those that `python -m benchmarks` wrote share the page *Speed*; every other one is a page
of its own. `docs/hooks.py` gives them to MkDocs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SPEED = "speed"
SPEED_COMMAND = re.compile(r"python -m benchmarks \w")
SPEED_TEXT = (
    "Every ratio compares RaRec with a plain implementation of the same method, measured in turn on the same machine. "
    "Run `make bench` to measure them on yours."
)


def result_pages() -> dict[str, str]:
    """Name -> Markdown of every page, ordered by name, the shared one last."""
    pages = {name: _page(name, text) for name, text, shared in _results() if not shared}
    shared = [_titled_first(text) for _, text, shared in _results() if shared]
    return {**pages, SPEED: "\n\n".join(["# Speed", SPEED_TEXT, *shared]) + "\n"}


def place_of(result: str) -> str | None:
    """Where the site shows the result of this name: a page, or an anchor on the shared one; None if there is none."""
    shared = {name: shared for name, _, shared in _results()}
    if result not in shared:
        return None
    return f"results/{SPEED}.md#{result}" if shared[result] else f"results/{result}.md"


def _results() -> Iterator[tuple[str, str, bool]]:
    """Name, text, and whether it stands on the shared page."""
    for file in sorted(RESULTS.glob("*.md")):
        record = file.with_suffix(".json")
        command = json.loads(record.read_text())["command"] if record.is_file() else ""
        yield file.stem, file.read_text(), bool(SPEED_COMMAND.match(command))


def _page(name: str, text: str) -> str:
    """The text as a page with one title."""
    titles = re.findall(r"^# ", text, re.MULTILINE)
    if text.startswith("# ") and len(titles) == 1:
        return text
    lower = re.sub(r"^(?=#+ )", "#", text, flags=re.MULTILINE) if titles else text
    return f"# {name.replace('-', ' ').capitalize()}\n\n{lower}"


def _titled_first(text: str) -> str:
    """The text with its first heading moved to the top, before the command and the machine."""
    before, heading, after = re.split(r"^(## .*)$", text, maxsplit=1, flags=re.MULTILINE)
    return f"{heading}\n\n{before.rstrip()}\n\n{after.strip()}"
