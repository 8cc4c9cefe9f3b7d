"""The three clean tables and the checks that stop what follows."""

from plant import STEPS, built, failed_checks, failures, metadata

import assets.data.clean
from assets.data.clean import has_clock, load_counts, load_table

T = 1_000_000_000
HEADER = "user_id:token\titem_id:token\ttimestamp:float"


def test_the_three_tables_are_cut_together(plant):
    """Sorted by user and time; items and users are numbered by their row."""
    folder = plant.home.data / "lenient"
    folder.mkdir(parents=True)
    rows = [HEADER, f"b\ty\t{T + 5}", f"a\tz\t{T + 30}", f"a\tx\t{T + 10}", f"b\tx\t{T + 40}", f"b\ty\t{T + 50}"]
    (folder / "lenient.inter").write_text("\n".join(rows) + "\n")
    result = plant.run("lenient", only=["raw_interactions", *STEPS])
    assert failures(result) == {}
    assert built(result) == {"raw_interactions", *STEPS}
    interactions, catalog, profiles = (plant.artifact(result, name) for name in STEPS)
    table = load_table(interactions, "interactions")
    assert table[["user_id", "item_id", "timestamp"]].to_numpy().tolist() == [
        ["a", "x", T + 10], ["a", "z", T + 30], ["b", "x", T + 40], ["b", "y", T + 50]
    ]  # fmt: skip
    items, users = load_table(catalog, "items"), load_table(profiles, "users")
    assert items["item_index"].tolist() == [0, 1, 2]
    assert users["user_index"].tolist() == [0, 1]
    assert items["item_id"][table["item_index"]].tolist() == table["item_id"].tolist()
    assert users["user_id"][table["user_index"]].tolist() == table["user_id"].tolist()
    for artifact in (interactions, catalog, profiles):
        counts = load_counts(artifact)
        assert {name: counts[name] for name in ("interactions", "items", "users", "dropped_duplicates")} == {
            "interactions": 4, "items": 3, "users": 2, "dropped_duplicates": 1
        }  # fmt: skip
        assert has_clock(artifact)
    told = metadata(result)
    assert [told[name]["rows"] for name in STEPS] == [4, 3, 2]


def test_counts_other_than_the_published_ones_stop_what_follows(plant):
    result = plant.run("miscounted")
    assert not result.success
    assert failed_checks(result) == {
        ("interactions", "published_counts"): {
            "users": {"found": 60, "published": 61, "difference": -1},
            "items": {"found": 100, "published": 100, "difference": 0},
        }
    }
    assert set(metadata(result)) == {"raw_interactions", "interactions", "item_catalog", "user_profiles"}


def test_a_table_against_its_schema_stops_what_follows(plant, monkeypatch):
    build_tables = assets.data.clean.build_tables

    def broken(*arguments):
        tables = build_tables(*arguments)
        tables.items.assign(item_index=tables.items["item_index"] // 2).to_parquet(tables.folder / "items.parquet")
        return tables

    monkeypatch.setattr(assets.data.clean, "build_tables", broken)
    result = plant.run("borrowed", item_catalog={"force": True})
    assert not result.success
    ((check, details),) = failed_checks(result).items()
    assert check == ("item_catalog", "schema")
    assert details["faults"] >= 1
    assert "item_index" in str(details["first"])
    assert "user_sequences" not in metadata(result)
