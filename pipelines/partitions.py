"""The only partition dimension: the data set."""

from collections.abc import Iterable

import dagster as dg

DEMO = "demo"


def dataset_partitions(names: Iterable[str]) -> dg.StaticPartitionsDefinition:
    """One partition per data set, in alphabetical order."""
    return dg.StaticPartitionsDefinition(sorted(names))
