"""All benchmarks by name: the RaSeRec track's, then the ReLLa track's."""

from collections.abc import Callable

from benchmarks import launched, raserec
from benchmarks.measure import Figures
from benchmarks.rella.prompts import prompts, scoring
from benchmarks.rella.retrieval import ctr_scale, subr
from benchmarks.rella.tuning import tuning
from benchmarks.tables import tables
from benchmarks.workloads import Setup

ON_SEQUENCES: dict[str, Callable[[Setup], Figures]] = {**raserec.BENCHMARKS, **launched.BENCHMARKS}
ON_FILMS = frozenset({"prompts", "scoring", "tuning"})
BENCHMARKS: dict[str, Callable[[Setup], Figures]] = {
    **ON_SEQUENCES,
    **{function.__name__: function for function in (subr, prompts, scoring, tuning, ctr_scale, tables)},
}
