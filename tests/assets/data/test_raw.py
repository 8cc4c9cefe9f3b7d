"""Published files become raw tables; rows that cannot be read are set aside."""

from plant import built, failures, metadata

from assets.data.raw import load_raw

T = 1_000_000_000
ROWS = [
    "user_id:token\titem_id:token\ttimestamp:float",
    f"a\tx\t{T + 10}",
    f"b\tx\t{T + 20}",
    "a\ty\tyesterday",
    f"a\tz\t{T + 30}",
]


def publish(plant, rows):
    folder = plant.home.data / "lenient"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lenient.inter").write_text("\n".join(rows) + "\n")


def test_rows_are_read_or_set_aside_with_file_line_and_reason(plant, caplog):
    publish(plant, ROWS)
    with caplog.at_level("INFO", logger="rarec.progress"):
        result = plant.run("lenient", only=["raw_interactions"])
    assert failures(result) == {}
    told = [record.getMessage() for record in caplog.records]
    begin = told.index("  1 rows quarantined, 3 read; the first bad ones:")
    assert told[begin + 1].startswith("    lenient.inter, line 4: ")
    raw = load_raw(plant.artifact(result, "raw_interactions"))
    assert raw.interactions[["user_id", "item_id", "timestamp"]].to_numpy().tolist() == [
        ["a", "x", T + 10], ["b", "x", T + 20], ["a", "z", T + 30]
    ]  # fmt: skip
    (aside,) = raw.quarantine.to_dict("records")
    assert (aside["file"], aside["line"]) == ("lenient.inter", 4)
    assert "yesterday" in aside["reason"]
    assert (raw.items, raw.users, raw.incoming_rows) == (None, None, 0)
    assert [one["rows"] for one in raw.sources] == [3]
    told = metadata(result)["raw_interactions"]
    assert (told["rows"], told["quarantined_rows"], told["format"]) == (3, 1, "recbole")


def test_only_another_content_is_another_artifact(plant):
    publish(plant, ROWS)
    assert plant.run("lenient", only=["raw_interactions"]).success
    file = plant.home.data / "lenient" / "lenient.inter"
    file.touch()
    assert built(plant.run("lenient", only=["raw_interactions"])) == set()
    publish(plant, [*ROWS, f"c\tx\t{T + 50}"])
    again = plant.run("lenient", only=["raw_interactions"])
    assert built(again) == {"raw_interactions"}
    assert metadata(again)["raw_interactions"]["rows"] == 4


def test_absent_files_are_listed(plant):
    failed = failures(plant.run("absent"))
    assert list(failed) == ["raw_interactions"]
    assert f"Put absent.inter into {plant.home.data / 'absent'}" in failed["raw_interactions"]
