"""An artifact's table as Dagster shows it: columns and where they come from, first rows, number of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq

FIRST_ROWS = 10


@dataclass(frozen=True)
class ShownTable:
    """Which table of an artifact is shown.

    Attributes:
        file: A parquet file of the artifact.
        columns: What a column means, by name; others are shown without words.
        sources: The assets and their columns that a column comes from, by name.
    """

    file: str
    columns: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    def kept(self, folder: Path) -> dict[str, Any]:
        """What the manifest keeps, as JSON."""
        with pq.ParquetFile(folder / self.file) as file:
            columns = [[one.name, str(one.type), self.columns.get(one.name, "")] for one in file.schema_arrow]
            first = next(file.iter_batches(FIRST_ROWS), None)
            rows = [] if first is None else first.to_pylist()
            return {
                "columns": columns,
                "sources": {name: self.sources[name] for name, _, _ in columns if name in self.sources},
                "first": [{name: _plain(value) for name, value in row.items()} for row in rows],
                "rows": file.metadata.num_rows,
            }


def table_metadata(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Dagster's metadata of what `ShownTable.kept` gave."""
    schema = dg.TableSchema(
        [dg.TableColumn(name, kind, description=words or None) for name, kind, words in kept["columns"]]
    )
    metadata: dict[str, Any] = {
        "dagster/row_count": kept["rows"],
        "dagster/column_schema": schema,
        "preview": dg.MetadataValue.table([dg.TableRecord(row) for row in kept["first"]], schema),
    }
    if kept["sources"]:
        lineage = {
            name: [dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=column) for asset, column in of]
            for name, of in kept["sources"].items()
        }
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(lineage)
    return metadata


def _plain(value: Any) -> Any:
    """A cell as Dagster's tables take it."""
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return str(value)
