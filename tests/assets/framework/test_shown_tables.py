"""Dagster shows an artifact's table: columns, where they come from, first rows."""

import json
from datetime import UTC, datetime

import dagster as dg
import pandas as pd

from assets.framework.shown_tables import FIRST_ROWS, ShownTable, table_metadata


def test_columns_sources_and_first_rows_are_shown(tmp_path):
    n = FIRST_ROWS + 3
    table = pd.DataFrame({"id": range(n), "score": [0.123456, None, *[1.0] * (n - 2)], "at": [datetime.now(UTC)] * n})
    table.to_parquet(tmp_path / "x.parquet", index=False)
    shown = ShownTable("x.parquet", {"id": "A number."}, {"id": [("other", "number")], "absent": [("other", "y")]})
    told = table_metadata(json.loads(json.dumps(shown.kept(tmp_path))))
    assert told["dagster/row_count"] == n
    columns = {column.name: (column.type, column.description) for column in told["dagster/column_schema"].columns}
    assert columns["id"] == ("int64", "A number.")
    assert columns["score"] == ("double", None)
    assert list(columns) == list(table)
    rows = [record.data for record in told["preview"].records]
    assert len(rows) == FIRST_ROWS
    assert [(row["id"], row["score"]) for row in rows[:3]] == [(0, 0.1235), (1, None), (2, 1.0)]
    (of_id,) = told["dagster/column_lineage"].deps_by_column.items()
    assert of_id == ("id", [dg.TableColumnDep(asset_key=dg.AssetKey("other"), column_name="number")])


def test_an_empty_table_has_columns_and_no_rows(tmp_path):
    pd.DataFrame({"id": pd.Series([], dtype="int32")}).to_parquet(tmp_path / "x.parquet", index=False)
    told = table_metadata(ShownTable("x.parquet").kept(tmp_path))
    assert (told["dagster/row_count"], list(told["preview"].records)) == (0, [])
    assert "dagster/column_lineage" not in told


def test_every_column_of_the_clean_tables_is_explained(plant, first):
    """With the words of `rarec.data.schemas`; and each names a column of an asset upstream, or is new."""
    for event in first.get_asset_materialization_events():
        if event.asset_key.to_user_string() not in ("interactions", "item_catalog", "user_profiles"):
            continue
        told = event.materialization.metadata
        columns = told["dagster/column_schema"].schema.columns
        assert columns
        assert all(column.description for column in columns)
        assert told["preview"].records
        sources = told["dagster/column_lineage"].column_lineage.deps_by_column
        assert {column.name for column in columns} - set(sources) <= {"user_index", "item_index"}
