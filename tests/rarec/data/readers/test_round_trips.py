"""What is written by pandas, by DuckDB, as by Spark and by hand comes back as it was, or is refused with its line."""

import csv
import gzip
import io
import shutil
import string

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rarec.data.formats.values import BLANKS, NOTHING
from rarec.data.raw import read_raw
from rarec.data.spec import DatasetSpec

T = 1_600_000_000
SOURCE = {"format": "table", "files": {"interactions": "events.csv"}}
# Without shrinking, which takes minutes here. Every run tries the same examples.
PLAIN = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=BLANKS), min_size=1, max_size=12
).filter(lambda text: text.lower() not in NOTHING)
# Ids of letters first, so that nothing looks like a number that a program has destroyed.
IDS = st.builds(lambda first, rest: first + rest, st.sampled_from(string.ascii_letters), TEXT).filter(
    lambda text: text.lower() not in NOTHING
)
ROWS = st.lists(
    st.tuples(IDS, IDS, st.integers(1, 5), st.integers(T * 10**6, (T + 10**8) * 10**6)), min_size=2, max_size=12
)
DIALECTS = st.sampled_from([(",", '"'), (";", '"'), ("\t", '"'), ("|", '"')])


def spec_of(**source):
    declared = {"name": "own", "title": "Own", "domain": "products", "rating_scale": [1, 5], "duplicates": "keep-all"}
    return DatasetSpec.model_validate(declared | {"sources": [SOURCE | source]})


def as_read(folder, **source):
    raw = read_raw(spec_of(**source), folder)
    assert raw.quarantine.empty
    table = raw.interactions
    micros = np.rint(table["timestamp"].to_numpy(np.float64) * 1e6).astype(np.int64)
    return list(zip(table["user_id"], table["item_id"], table["rating"].astype(int), micros.tolist(), strict=True))


def seconds(micros):
    return f"{micros // 10**6}.{micros % 10**6:06}"


@PLAIN
@given(rows=ROWS, dialect=DIALECTS)
def test_csv_written_by_the_standard_library(tmp_path, rows, dialect):
    delimiter, quote = dialect
    with (tmp_path / "events.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quotechar=quote, quoting=csv.QUOTE_ALL)
        writer.writerow(["user_id", "item_id", "rating", "timestamp"])
        writer.writerows((user, item, rating, seconds(micros)) for user, item, rating, micros in rows)
    # A tab-separated file with all its values in quotes is told by them; elsewhere quotes are the rule.
    assert as_read(tmp_path, delimiter=delimiter, quote=quote) == rows


@PLAIN
@given(rows=ROWS)
def test_csv_written_by_pandas(tmp_path, rows):
    table = pd.DataFrame(rows, columns=["userId", "productId", "stars", "date"])
    table["date"] = pd.to_datetime(table["date"], unit="us")
    table.to_csv(tmp_path / "events.csv", index=False)
    assert as_read(tmp_path) == rows


@PLAIN
@given(rows=ROWS, kind=st.sampled_from(["parquet", "json", "csv"]))
def test_files_written_by_duckdb(tmp_path, rows, kind):
    with duckdb.connect() as database:
        database.execute("CREATE TABLE t (user_id VARCHAR, item_id VARCHAR, rating DOUBLE, timestamp TIMESTAMP)")
        database.executemany("INSERT INTO t VALUES (?, ?, ?, make_timestamp(?::BIGINT))", rows)
        database.execute(f"COPY t TO '{tmp_path}/events.csv' (FORMAT {kind})")
    assert as_read(tmp_path) == rows


@PLAIN
@given(rows=ROWS, kind=st.sampled_from(["csv", "csv.gz", "snappy.parquet"]), parts=st.integers(1, 3))
def test_folders_written_as_spark_does(tmp_path, rows, kind, parts):
    """Parts beside markers and checksums; CSV escapes quotes by a backslash; parquet has times of 96 bits."""
    rows = [tuple(one.replace("\\", "/") if isinstance(one, str) else one for one in row) for row in rows]
    folder = tmp_path / "events"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "year=2020").mkdir(parents=True)
    for name in ("_SUCCESS", ".part-0.crc", "year=2020/.part-0.crc"):
        (folder / name).write_bytes(b"crc\0")
    for number in range(parts):
        own = rows[number::parts]
        path = folder / ("year=2020" if number else ".") / f"part-{number:05}-4f5c-c000.{kind}"
        if kind == "snappy.parquet":
            users, items, ratings, times = zip(*own, strict=True) if own else ((), (), (), ())
            columns = [pa.array(users, pa.string()), pa.array(items, pa.string()), pa.array(ratings, pa.float64())]
            columns.append(pa.array(times, pa.timestamp("us")))
            table = pa.table(columns, names=["user_id", "item_id", "rating", "timestamp"])
            pq.write_table(table, path, compression="snappy", use_deprecated_int96_timestamps=True)
            continue
        text = io.StringIO()
        writer = csv.writer(text, doublequote=False, escapechar="\\", lineterminator="\n")
        writer.writerow(["user_id", "item_id", "rating", "timestamp"])
        writer.writerows((user, item, rating, seconds(micros)) for user, item, rating, micros in own)
        content = text.getvalue().encode()
        path.write_bytes(gzip.compress(content) if kind == "csv.gz" else content)
    expected = [row for number in range(parts) for row in rows[number::parts]]
    assert as_read(tmp_path, files={"interactions": "events"}, delimiter=None if "csv" not in kind else ",") == expected


@PLAIN
@given(
    ids=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=3, max_size=12, unique=True),
    shift=st.sampled_from([1, 10**3, 10**6]),
)
def test_ids_of_64_bits_and_units_of_time(tmp_path, ids, shift):
    unit = {1: "s", 10**3: "ms", 10**6: "us"}[shift]
    lines = [f"{one},{one},{1 + n % 5},{(T + n) * shift}" for n, one in enumerate(ids)]
    (tmp_path / "events.csv").write_text("user_id,item_id,rating,timestamp\n" + "\n".join(lines))
    read = as_read(tmp_path, time_unit=unit)
    assert [int(user) for user, *_ in read] == ids
    assert [micros for *_, micros in read] == [(T + n) * 10**6 for n in range(len(ids))]


@PLAIN
@given(
    rows=ROWS,
    bad=st.sampled_from(
        [",i,3,1600000000", "u,i,9,1600000000", "u,i,3,160", "u,i,3", "u,i,3,1600000000,x", 'u,"i,3,4']
    ),
    place=st.integers(0, 12),
)
def test_a_bad_line_is_refused_by_its_number(tmp_path, rows, bad, place):
    lines = [
        ",".join(
            f'"{value}"'.replace('"', '""')[1:-1] if '"' in str(value) or "," in str(value) else str(value)
            for value in row
        )
        for row in ((user, item, rating, seconds(micros)) for user, item, rating, micros in rows)
        if not set('",') & set("".join(row[:2]))
    ]
    place = min(place, len(lines))
    lines.insert(place, bad)
    (tmp_path / "events.csv").write_text(
        "user_id,item_id,rating,timestamp\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    raw = (
        read_raw(spec_of(delimiter=",", header=True).model_copy(update={"quarantine_limit": 1.0}), tmp_path)
        if len(lines) > 1
        else None
    )
    if raw is not None:
        assert raw.quarantine.line.tolist() == [place + 2]
        assert len(raw.interactions) == len(lines) - 1


@pytest.mark.parametrize("word", ["\x00", "a\x00b"])
def test_a_nul_is_told(tmp_path, word):
    (tmp_path / "events.csv").write_text(f"user_id,item_id,rating,timestamp\n{word},i,3,{T}\nu,i,3,{T}\n")
    raw = read_raw(spec_of().model_copy(update={"quarantine_limit": 1.0}), tmp_path)
    assert raw.quarantine.line.tolist() == [2]
