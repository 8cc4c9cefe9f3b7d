"""Messages of Dagster Pipes, read as whole lines."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from threading import Event

import dagster as dg

POLL_S = 0.01


class WholeLineReader(dg.PipesFileMessageReader):
    """Dagster's reader, but a line counts only when its end is there.

    On a busy machine, Dagster's own takes the first half of a line for a message, fails, and reads no more.
    """

    def _reader_thread(self, handler: dg.PipesMessageHandler, is_resource_complete: Event) -> None:
        try:
            for line in whole_lines(self._path, is_resource_complete.is_set):
                handler.handle_message(json.loads(line))
        except BaseException:
            handler.report_pipes_framework_exception(f"{type(self).__name__} reader thread", sys.exc_info())
            raise


def whole_lines(path: str, should_stop: Callable[[], bool]) -> Iterator[str]:
    """Lines of a growing file, until there are no more and ``should_stop``. An unfinished last line is left out."""
    begun = ""
    with open(path, encoding="utf-8") as file:
        while True:
            stop = should_stop()  # asked before reading, so that nothing written before the end is missed
            if part := file.readline():
                begun += part
                if begun.endswith("\n"):
                    yield begun
                    begun = ""
            elif stop:
                return
            else:
                time.sleep(POLL_S)
