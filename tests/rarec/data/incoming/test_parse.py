"""Reading one file of new interactions: bad rows, clocks, quoting, parquet's types, faults that are not the file's."""

import errno

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarec.data.incoming.parse import parse_incoming
from rarec.data.readers import columnar
from rarec.data.readers.connection import in_memory
from rarec.data.source_spec import SourceSpec
from rarec.data.spec import DatasetSpec, builtin_specs
from rarec.errors import InputError

SPEC = builtin_specs()["ml-100k"]
NOW = 900_000_000
DAY = 86_400
COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
ROWS = [(user, 50, 4, 893_000_000 + user) for user in range(1, 11)]


def write(folder, rows, kind, name="new"):
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    path = folder / f"{name}.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


def plain(parsed):
    """Its rows as tuples of numbers, with their lines before them."""
    return [
        (row["line"], int(row["user_id"]), int(row["item_id"]), int(row["rating"]), row["timestamp"])
        for row in parsed.rows.to_pylist()
    ]


@pytest.mark.parametrize(("kind", "first"), [("csv", 2), ("parquet", 1)])
def test_three_bad_rows_of_ten_are_set_aside_with_line_and_reason(tmp_path, kind, first):
    rows = [list(row) for row in ROWS]
    rows[0][1], rows[4][2], rows[9][3] = None, 17, -5
    parsed = parse_incoming(write(tmp_path, rows, kind), SPEC, NOW)
    good = [number for number in range(10) if number not in (0, 4, 9)]
    assert plain(parsed) == [(first + number, *ROWS[number]) for number in good]
    reasons = [
        "item_id is empty",
        "rating '17' is outside 1 to 5",
        "timestamp '-5' is 1969-12-31 (seconds since 1970, from 1990 to a day ahead of now, are expected)",
    ]
    assert [row[:2] for row in parsed.bad] == list(zip((first, first + 4, first + 9), reasons, strict=True))
    assert parsed.bad[1][2].split(",") == ["5", "50", "17", "893000005"]


def test_small_files_share_a_database_and_leave_nothing_in_it(tmp_path):
    rows = [list(row) for row in ROWS]
    rows[0][1], rows[4][2] = None, 17
    files = [write(tmp_path, rows, kind, f"new-{kind}") for kind in ("csv", "parquet")]
    files.append(write(tmp_path, [(user, 50, 99, time) for user, _, _, time in ROWS], "csv", "bad"))
    with in_memory() as shared:
        for path in [*files, *files]:
            if path.stem == "bad":
                with pytest.raises(InputError, match="10 of 10 rows cannot be read"):
                    parse_incoming(path, SPEC, NOW, shared=shared)
            else:
                own, together = parse_incoming(path, SPEC, NOW), parse_incoming(path, SPEC, NOW, shared=shared)
                assert together.rows.equals(own.rows)
                assert together.bad == own.bad
            assert shared.sql("SELECT count(*) FROM information_schema.tables").fetchall() == [(0,)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_wholly_bad_is_refused_and_says_why(tmp_path, kind):
    path = write(tmp_path, [(user, 50, 99, time) for user, _, _, time in ROWS], kind)
    with pytest.raises(InputError, match=r"10 of 10 rows cannot be read .*rating '99' is outside 1 to 5") as error:
        parse_incoming(path, SPEC, NOW)
    assert str(error.value).endswith("Correct the file: it is read again as soon as its content changes.")


def test_events_of_the_future_are_bad_but_for_the_difference_of_clocks(tmp_path):
    times = [631_152_000, 893_000_000.25, 893_000_000, NOW, NOW + DAY, NOW + DAY + 1, NOW + 365 * DAY, NOW * 1000]
    parsed = parse_incoming(write(tmp_path, [(1, 5, 3, time) for time in times], "csv"), SPEC, NOW)
    assert [row[-1] for row in plain(parsed)] == times[:5]
    assert [line for line, _, _ in parsed.bad] == [7, 8, 9]
    assert all("to a day ahead of now" in reason for _, reason, _ in parsed.bad)


def test_a_file_written_by_a_clock_years_ahead_is_refused(tmp_path):
    path = write(tmp_path, [(user, item, rating, NOW + 365 * DAY) for user, item, rating, _ in ROWS], "csv")
    with pytest.raises(InputError, match=r"10 of 10 rows cannot be read .*to a day ahead of now"):
        parse_incoming(path, SPEC, NOW)


def test_a_quoted_line_break_loses_no_row_and_makes_none_up(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text(
        "comment,user_id,item_id,rating,timestamp\n"
        '"good\nbuy",1,50,4,893000001\n"bad, 7,50,4,893000007\nbuy",2,50,17,893000002\nfair,3,50,4,893000003\n'
    )
    parsed = parse_incoming(path, SPEC, NOW)
    assert plain(parsed) == [(2, 1, 50, 4, 893_000_001), (6, 3, 50, 4, 893_000_003)]
    assert [row[:2] for row in parsed.bad] == [(4, "rating '17' is outside 1 to 5")]
    path.write_text('user_id,item_id,rating,timestamp\n"a\nb",1,5,893000001\nc,1,5,893000001\n')
    assert [(row["line"], row["user_id"]) for row in parse_incoming(path, SPEC, NOW).rows.to_pylist()] == [
        (2, "a\nb"),
        (4, "c"),
    ]


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(duckdb.OutOfMemoryException("no"), MemoryError), (OSError(errno.EIO, "Input/output error"), OSError)],
)
def test_a_fault_of_this_machine_is_none_of_a_parquet_file(tmp_path, monkeypatch, fault, raised):
    def as_text(*_):
        raise fault

    path = write(tmp_path, ROWS, "parquet")
    monkeypatch.setattr(columnar, "_as_text", as_text)
    with pytest.raises(raised):
        parse_incoming(path, SPEC, NOW)


def parquet_of(folder, **columns):
    path = folder / "new.parquet"
    ids = {"user_id": pa.array(range(1, 5)), "item_id": pa.array([50] * 4), "rating": pa.array([4] * 4)}
    pq.write_table(pa.table({**ids, "timestamp": pa.array([893_000_000] * 4), **columns}), path)
    return path


@pytest.mark.parametrize(
    ("column", "shown"),
    [("rating", "rating '1e+20' is outside 1 to 5"), ("timestamp", "timestamp '1e+20' is not a time")],
)
@pytest.mark.parametrize("type_", [pa.float32(), pa.float64()])
def test_a_number_beyond_all_bounds_is_one_bad_row_of_a_parquet_file(tmp_path, column, shown, type_):
    scale = 1.0 if column == "rating" else 2e8
    values = pa.array([4 * scale, 1e20, 4.5 * scale, 5.0 * scale if scale == 1 else 8e8], type_)
    parsed = parse_incoming(parquet_of(tmp_path, **{column: values}), SPEC, NOW)
    assert [row[0] for row in plain(parsed)] == [1, 3, 4]
    ((line, reason, text),) = parsed.bad
    assert (line, text[:5]) == (2, "2,50,")
    assert reason.startswith(shown)


@pytest.mark.parametrize(("type_", "large"), [(pa.float32(), 2.0**24), (pa.float64(), 2.0**53)])
def test_ids_that_floats_have_merged_are_refused(tmp_path, type_, large):
    path = parquet_of(tmp_path, user_id=pa.array([17.0, large, 3.0, 4.0], type_))
    with pytest.raises(InputError, match=r"user_id '[0-9.e+]+' is a (32|64)-bit float, .*so ids are lost\. Export ids"):
        parse_incoming(path, SPEC, NOW)


def test_whole_numbers_among_missing_values_are_ids(tmp_path):
    parsed = parse_incoming(parquet_of(tmp_path, user_id=pa.array([17.0, None, 2.0**24 + 2, -3.0])), SPEC, NOW)
    assert parsed.rows["user_id"].to_pylist() == ["17", str(2**24 + 2), "-3"]
    assert [row[:2] for row in parsed.bad] == [(2, "user_id is empty")]


@pytest.mark.parametrize(
    "type_", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin")]
)
def test_days_and_moments_of_a_parquet_file_are_seconds(tmp_path, type_):
    midnight = 10_335 * DAY
    days = pa.array([10_335] * 4, pa.int32()).cast(pa.date32())
    path = parquet_of(tmp_path, timestamp=days.cast(pa.timestamp("s")).cast(type_) if type_ != pa.date32() else days)
    assert parse_incoming(path, SPEC, NOW).rows["timestamp"].to_pylist() == [midnight] * 4


@pytest.mark.parametrize("keep", [4, 300, -1], ids=["its first bytes", "half", "all but one byte"])
def test_a_parquet_file_that_is_cut_is_refused(tmp_path, keep):
    path = write(tmp_path, ROWS, "parquet")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a complete parquet file"):
        parse_incoming(path, SPEC, NOW)


def test_times_do_not_matter_where_the_data_set_has_no_clock(tmp_path):
    ordered, none = (
        builtin_specs()["bookcrossing-small"].model_copy(update={"time": time}) for time in ("order", "none")
    )
    path = write(tmp_path, ROWS, "csv")
    assert parse_incoming(path, ordered, NOW).rows["timestamp"].to_pylist() == [row[3] for row in ROWS]
    assert parse_incoming(path, none, NOW).rows["timestamp"].to_pylist() == [-1] * 10
    path.write_text("user_id,item_id,rating\nu,i,3\n")
    for spec in (ordered, none):
        assert parse_incoming(path, spec, NOW).rows["timestamp"].to_pylist() == [-1]
    with pytest.raises(InputError, match="there is no time column; map one to `timestamp`"):
        parse_incoming(path, SPEC, NOW)


def test_a_file_by_the_data_sets_own_names_or_by_ours(tmp_path):
    columns = {"interactions": {"who": "user_id", "what": "item_id", "when": "timestamp", "stars": "rating"}}
    source = {"format": "table", "columns": columns, "time_unit": "ms"}
    spec = SPEC.model_copy(update={"sources": (SourceSpec.model_validate(source),)})
    path = tmp_path / "new.csv"
    for header in ("who,what,when,stars", "user_id,item_id,timestamp,rating"):
        path.write_text(f"{header}\n7,50,893000001500,4\n")
        (row,) = parse_incoming(path, spec, NOW).rows.to_pylist()
        assert (row["user_id"], row["timestamp"]) == ("7", 893_000_001.5)


def shop(**source):
    base = {"name": "shop", "title": "Shop", "domain": "products", "rating_scale": [1, 5]}
    return DatasetSpec.model_validate(base | {"sources": [{"format": "table"} | source]})


def test_new_files_are_written_as_the_published_ones_are(tmp_path):
    (tmp_path / "new.txt").write_bytes('user_id;item_id;rating;time\nJosé;"a;5;2.6.1998\n'.encode("cp1252"))
    spec = shop(encoding="cp1252", delimiter=";", quote="", time_unit="%d.%m.%Y")
    parsed = parse_incoming(tmp_path / "new.txt", spec, NOW)
    assert parsed.rows.to_pylist() == [
        {"line": 2, "user_id": "José", "item_id": '"a', "rating": 5.0, "timestamp": 896745600.0}
    ]


def test_new_files_may_be_delimited_and_quoted_otherwise(tmp_path):
    (tmp_path / "new.csv").write_text('user_id,item_id,rating,timestamp\n"u,1","a",5,893000001\n')
    parsed = parse_incoming(tmp_path / "new.csv", shop(delimiter=";", quote=""), NOW)
    assert parsed.rows["user_id"].to_pylist() == ["u,1"]


def test_new_files_of_amazons_edition_of_2023_have_its_times(tmp_path):
    (tmp_path / "new.csv").write_text("user_id,parent_asin,rating,timestamp\nA1,B1,5.0,893000001500\n")
    spec = DatasetSpec.model_validate(
        {
            "name": "beauty",
            "title": "Beauty",
            "domain": "products",
            "rating_scale": [1, 5],
            "sources": [{"format": "amazon-2014", "files": {"interactions": "r.json", "items": "m.json"}}],
        }
    )
    assert parse_incoming(tmp_path / "new.csv", spec, NOW).rows["timestamp"].to_pylist() == [893000001.5]


def test_places_of_a_published_file_without_a_header_do_not_hold_for_one_with_names(tmp_path):
    spec = shop(
        header=False, columns={"interactions": {"1": "item_id", "2": "user_id", "3": "rating", "4": "timestamp"}}
    )
    (tmp_path / "new.csv").write_text("user_id,item_id,rating,timestamp\nu1,a,5,893000001\n")
    (tmp_path / "like.csv").write_text("a,u1,5,893000001\n")
    expected = {"user_id": "u1", "item_id": "a", "rating": 5.0, "timestamp": 893000001.0}
    for name, line in (("new.csv", 2), ("like.csv", 1)):
        assert parse_incoming(tmp_path / name, spec, NOW).rows.to_pylist() == [{"line": line, **expected}]


@pytest.mark.parametrize("header", [None, False])
def test_the_index_that_pandas_writes_is_not_taken_for_the_first_column(tmp_path, header):
    places = {"1": "user_id", "2": "item_id", "3": "rating", "4": "timestamp"}
    spec = shop(header=header, columns={"interactions": places})
    frame = pd.DataFrame([("alice", "i1", 5, 893000001), ("bob", "i2", 4, 893000002)], columns=COLUMNS)
    frame.to_csv(tmp_path / "new.csv")
    assert parse_incoming(tmp_path / "new.csv", spec, NOW).rows["user_id"].to_pylist() == ["alice", "bob"]
