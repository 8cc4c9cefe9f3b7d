"""All benchmarks by name: the RaSeRec track's, then the ReLLa track's."""

from collections.abc import Callable

from benchmarks import raserec, rella
from benchmarks.measure import Figures
from benchmarks.workloads import Setup

BENCHMARKS: dict[str, Callable[[Setup], Figures]] = {**raserec.BENCHMARKS, **rella.BENCHMARKS}
