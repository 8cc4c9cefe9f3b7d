"""All benchmarks by name: the RaSeRec track's, then the ReLLa track's."""

from collections.abc import Callable

from benchmarks import launched, raserec, rella
from benchmarks.measure import Figures
from benchmarks.workloads import Setup

BENCHMARKS: dict[str, Callable[[Setup], Figures]] = {
    **raserec.BENCHMARKS,
    **launched.BENCHMARKS,
    **rella.BENCHMARKS,
}
