"""Forwards the output of a training's ranks and agents from their files to the Dagster log."""

from collections import deque
from pathlib import Path

import dagster as dg

LOG_LINES_PER_EVENT = 50
LAST_LINES = 25  # of a file, shown when a worker fails


class OutputFollower:
    """Follows log.txt, log-<rank>.txt and node-<name>.txt of a working folder.

    Each file is reopened for every look; otherwise a network file system may not show what another machine wrote.
    """

    def __init__(self, folder: Path, context: dg.AssetExecutionContext) -> None:
        self._folder = folder
        self._context = context
        # The files keep the output of earlier attempts, which is not logged again.
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
        """Log the rest, including a last line without a line break."""
        self.forward()
        for path, rest in self._rests.items():
            self._tell(path, [rest] if rest else [])
        self._rests.clear()

    def last_lines(self, rank: int | str | None = None) -> str:
        """The last lines of a rank in this attempt, or of all ranks if they share one file."""
        said = self._last.get(self.log_of(rank))
        if said is None:
            said = deque((line for lines in self._last.values() for line in lines), LAST_LINES)
        return "\n".join(said) or "(no output)"

    def log_of(self, rank: int | str | None = None) -> Path:
        """The file with the whole output of a rank or of a machine's agent; the folder if there is no output."""
        files = [self._folder / f"log-{rank}.txt", self._folder / f"{rank}.txt", self._folder / "log.txt"]
        return next((path for path in files if path in self._last), self._folder)

    def _files(self) -> list[Path]:
        return [
            *self._folder.glob("log.txt"),
            *sorted(self._folder.glob("log-*.txt")),
            *self._folder.glob("node-*.txt"),
        ]

    def _tell(self, path: Path, lines: list[bytes]) -> None:
        # A progress bar redraws its line with carriage returns; keep its last state.
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
