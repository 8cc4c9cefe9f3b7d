"""The output of a training's ranks and agents, from the files that they write to the Dagster log."""

from collections import deque
from pathlib import Path

import dagster as dg

LOG_LINES_PER_EVENT = 50
LAST_LINES = 25  # of a file, shown when a worker fails


class OutputFollower:
    """Forwards what is new in log.txt, log-<rank>.txt and node-<name>.txt of a working folder to the Dagster log.

    Each file is opened anew for every look, which is how a network file system shows what another machine wrote.
    """

    def __init__(self, folder: Path, context: dg.AssetExecutionContext) -> None:
        self._folder = folder
        self._context = context
        # Earlier attempts stay in the files and are not told again.
        self._offsets = {path: path.stat().st_size for path in self._files()}
        self._rests: dict[Path, bytes] = {}
        self._last: dict[Path, deque[str]] = {}

    def forward(self) -> None:
        """Log the complete lines written since the last call."""
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                written = file.read()
            self._offsets[path] = self._offsets.get(path, 0) + len(written)
            *lines, self._rests[path] = (self._rests.get(path, b"") + written).split(b"\n")
            self._tell(path, lines)

    def finish(self) -> None:
        """Log the rest, also lines without an end."""
        self.forward()
        for path, rest in self._rests.items():
            self._tell(path, [rest] if rest else [])
        self._rests.clear()

    def last_lines(self, rank: int | str | None = None) -> str:
        """The end of what a rank (or all together, where they share one file) wrote in this attempt."""
        said = self._last.get(self.log_of(rank))
        if said is None:
            said = deque((line for lines in self._last.values() for line in lines), LAST_LINES)
        return "\n".join(said) or "(no output)"

    def log_of(self, rank: int | str | None = None) -> Path:
        """The file with a rank's whole output, or a machine's agent's; the folder if it said nothing in any."""
        files = [self._folder / f"log-{rank}.txt", self._folder / f"{rank}.txt", self._folder / "log.txt"]
        return next((path for path in files if path in self._last), self._folder)

    def _files(self) -> list[Path]:
        return [
            *self._folder.glob("log.txt"),
            *sorted(self._folder.glob("log-*.txt")),
            *self._folder.glob("node-*.txt"),
        ]

    def _tell(self, path: Path, lines: list[bytes]) -> None:
        # A progress bar redraws its line with carriage returns: keep its last state.
        texts = [line.decode("utf-8", errors="replace").rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
        texts = [text for text in texts if text.strip()]
        if not texts:
            return
        self._last.setdefault(path, deque(maxlen=LAST_LINES)).extend(texts)
        if len(texts) > LOG_LINES_PER_EVENT:
            hidden = len(texts) - LOG_LINES_PER_EVENT
            texts = [f"... {hidden} more lines in {path}", *texts[hidden:]]
        source = path.stem.replace("log-", "rank ") if path.stem != "log" else ""
        self._context.log.info("\n".join(f"[{source}] {text}" if source else text for text in texts))
