"""Kinds of faults in real files, each by a small input: ids, times, dialects, texts, and what is told of them."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarec.data.checks import check_ties
from rarec.data.formats.dialects import find_delimiter
from rarec.data.raw import read_raw
from rarec.data.spec import DatasetSpec
from rarec.data.tables import build_tables
from rarec.errors import InputError

T = 1_600_000_000
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def spec_of(source=None, **fields):
    base = {"name": "shop", "title": "Shop", "domain": "products", "rating_scale": [1, 5], "duplicates": "keep-last"}
    return DatasetSpec.model_validate(base | {"sources": [source or {"format": "recbole"}]} | fields)


def events(users=4, items=6, user="u{}", item="i{}", times=lambda n: T + n, end="\n"):
    """Lines of a RecBole file: every user meets every item, in order of time."""
    rows = [
        (user.format(u), item.format(i), 1 + (u + i) % 5, times(u * items + i))
        for u in range(users)
        for i in range(items)
    ]
    return "".join("\t".join(map(str, row)) + end for row in rows)


def read(tmp_path, inter, items=None, spec=None):
    (tmp_path / "shop.inter").write_bytes(inter if isinstance(inter, bytes) else inter.encode())
    if items is not None:
        (tmp_path / "shop.item").write_bytes(items if isinstance(items, bytes) else items.encode())
    spec = spec or spec_of()
    raw = read_raw(spec, tmp_path)
    return raw, build_tables(spec, raw)


# ---- ids


def test_ids_that_pandas_wrote_as_floats_are_whole_numbers(tmp_path):
    items = "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\tThing {i}\n" for i in range(6))
    raw, tables = read(tmp_path, HEADER + events(user="{}.0", item="{}.0"), items, spec_of(unknown_items="drop"))
    assert tables.counts["dropped_unknown_items"] == 0
    assert tables.users.user_id.tolist() == [0, 1, 2, 3]
    assert [sentence.split(":")[0] for sentence in raw.warnings] == ["user_id", "item_id"]


@pytest.mark.parametrize("word", ["nan", "NaN", "NULL", "\\N", "None", "N/A", "<NA>", "", "  "])
def test_words_that_stand_for_nothing_are_no_ids(tmp_path, word):
    line = f"{word}\ti1\t5\t{T}\n"
    raw, tables = read(tmp_path, HEADER + events() + line, spec=spec_of(quarantine_limit=0.1))
    assert tables.counts["users"] == 4
    assert raw.quarantine.line.tolist() == [26]
    with pytest.raises(InputError, match=r"1 of 25 rows cannot be read .* line 26: user_id .*(means nothing|is empty)"):
        read(tmp_path, HEADER + events() + line)


@pytest.mark.parametrize("kind", ["table", "parquet", "movielens-csv"])
def test_a_missing_id_among_whole_numbers_is_one_bad_row(tmp_path, kind):
    ids = [*range(1, 60), None]
    frame = pd.DataFrame({"userId": ids, "movieId": 7, "rating": 4.0, "timestamp": T}).astype({"userId": "Int64"})
    if kind == "parquet":
        frame.to_parquet(tmp_path / "ratings.csv")
    else:
        frame.to_csv(tmp_path / "ratings.csv", index=False)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,A (1999),Drama\n")
    source = {"format": "table", "files": {"interactions": "ratings.csv"}}
    source = {"format": "movielens-csv"} if kind == "movielens-csv" else source
    raw = read_raw(spec_of(source, quarantine_limit=0.05), tmp_path)
    assert raw.interactions.user_id.tolist() == list(range(1, 60))
    assert raw.quarantine.reason.tolist() == ["user_id is empty"]


def test_own_words_for_nothing(tmp_path):
    spec = spec_of({"format": "recbole", "null_values": ["unknown"]}, quarantine_limit=0.1)
    _, tables = read(tmp_path, HEADER + events() + f"Unknown\ti1\t5\t{T}\nnan\ti1\t5\t{T}\n", spec=spec)
    assert tables.users.user_id.tolist() == ["nan", "u0", "u1", "u2", "u3"]


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u200b", "\ufeff", "\u3000"])
def test_blanks_around_ids_are_no_part_of_them(tmp_path, blank):
    _, tables = read(tmp_path, HEADER + events(items=3) + events(items=3, user="u{}" + blank, item=blank + "j{}"))
    assert tables.counts["users"] == 4
    assert tables.counts["items"] == 6


def test_a_nul_in_an_id_is_a_bad_row_and_in_a_title_white_space(tmp_path):
    items = "item_id:token\ttitle:token_seq\n" + "".join(f"i{i}\tTh\0ing {i}\n" for i in range(6))
    spec = spec_of(quarantine_limit=0.1)
    raw, tables = read(tmp_path, HEADER + events() + f"u\0x\ti1\t5\t{T}\n", items, spec)
    assert raw.quarantine.reason.tolist() == ["user_id 'u\\x00x' holds a NUL character"]
    assert tables.items.title[0] == "Th ing 0"


@pytest.mark.parametrize("first", [1_700_000_000_000_000_001, -1_984_032_596_069_630_074, 2**63 + 11])
def test_ids_of_64_bits_signed_or_not(tmp_path, first):
    def line(u, i):
        return f"{first + u}\t{first + 100 + i}\t5\t{T + i}\n"

    _, tables = read(tmp_path, HEADER + "".join(line(u, i) for u in range(4) for i in range(6)))
    expected = [first + u for u in range(4)]
    assert tables.users.user_id.tolist() == (expected if first < 2**63 else [str(one) for one in expected])


def test_leading_zeros_are_kept_where_each_number_is_written_in_one_way(tmp_path):
    raw, tables = read(tmp_path, HEADER + events(item="000{}"))
    assert tables.items.item_id.tolist() == [f"000{i}" for i in range(6)]
    assert raw.warnings == ()


def test_one_number_written_in_two_ways_is_one_id_only_among_numbers(tmp_path):
    raw, tables = read(
        tmp_path, HEADER + events(items=3, item="{}") + events(items=3, item="0{}", times=lambda n: T + 99 + n)
    )
    assert tables.items.item_id.tolist() == [0, 1, 2]
    assert raw.warnings[0].startswith("item_id: 3 numbers are written in several ways (first: '00')")
    _, tables = read(tmp_path, HEADER + events(items=3, item="{}") + events(items=3, item="0{}") + f"u1\tx\t5\t{T}\n")
    assert tables.items.item_id.tolist() == ["0", "00", "01", "02", "1", "2", "x"]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("1.23457E+12", "was rounded by a spreadsheet or a float"),
        ("1.7e+18", "was rounded by a spreadsheet or a float"),
        ("1,234", "has a separator of thousands"),
        ("1.234.567", "has a separator of thousands"),
        ("1700000000000000000.0", "was rounded by a float"),
    ],
)
def test_ids_that_a_program_has_destroyed_are_refused_by_name(tmp_path, written, why):
    lines = events(user="{}") + f"{written}\ti1\t5\t{T}\n"
    with pytest.raises(InputError, match=rf"shop\.inter: user_id '.*' {why}.*Export ids as text or as whole numbers"):
        read(tmp_path, HEADER + lines)


def test_ids_merged_through_32_bit_floats_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(2**25, 2**27, 40).astype(np.float32).astype(np.int64)
    with pytest.raises(InputError, match=r"user_id: all \d+ ids above 16,777,216 are exact in 32-bit floats"):
        read(tmp_path, HEADER + "".join(f"{one}.0\ti{n % 5}\t5\t{T + n}\n" for n, one in enumerate(ids)))


def test_isbns_are_one_id_whatever_the_case_of_their_last_character(tmp_path):
    lines = events(items=3, item="00000000{}x") + events(items=3, item="00000000{}X", times=lambda n: T + 99 + n)
    raw, tables = read(tmp_path, HEADER + lines)
    assert tables.items.item_id.tolist() == ["000000000X", "000000001X", "000000002X"]
    assert "3 ISBNs are written with x and with X" in raw.warnings[0]
    _, tables = read(tmp_path, HEADER + events(item="00000000{}x"))
    assert tables.items.item_id.tolist()[0] == "000000000x"  # as written, if there is no other


# ---- times


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units_of_time(tmp_path, unit, factor):
    spec = spec_of({"format": "recbole", "time_unit": unit})
    _, tables = read(tmp_path, HEADER + events(times=lambda n: (T + n) * factor), spec=spec)
    assert tables.interactions.timestamp.tolist() == [T + n for n in range(24)]
    assert tables.interactions.timestamp.dtype == np.int64
    if unit != "s":
        with pytest.raises(InputError, match=rf'24 of 24 rows .*set `time_unit = "{unit}"` in the source'):
            read(tmp_path, HEADER + events(times=lambda n: (T + n) * factor))


def test_days_as_numbers_are_refused_or_converted(tmp_path):
    inter = HEADER + events(times=lambda n: 20_200_901 + n)
    with pytest.raises(InputError, match=r"timestamp '20200901' is 1970-08-22 .*`time_unit = \"days\"`"):
        read(tmp_path, inter)
    _, tables = read(tmp_path, inter, spec=spec_of({"format": "recbole", "time_unit": "days"}))
    first = pd.Timestamp("2020-09-01", tz="UTC").timestamp()
    assert tables.interactions.timestamp.tolist() == [first + 86_400 * n for n in range(24)]


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        ("%Y-%m-%d %H:%M:%S", None),
        ("%Y-%m-%dT%H:%M:%SZ", None),
        ("%Y/%m/%d %H:%M:%S", None),
        ("%m/%d/%Y %I:%M:%S %p", "same"),
    ],
)
def test_times_as_text(tmp_path, form, unit):
    moments = pd.to_datetime([T + n for n in range(24)], unit="s")
    source = {"format": "recbole", **({"time_unit": form} if unit else {})}
    _, tables = read(tmp_path, HEADER + events(times=lambda n: moments[n].strftime(form)), spec=spec_of(source))
    assert tables.interactions.timestamp.tolist() == [T + n for n in range(24)]


def test_the_order_within_a_second_follows_the_fractions(tmp_path):
    _, tables = read(tmp_path, HEADER + events(times=lambda n: f"{T + 1}.{999 - n:03}"))
    table = tables.interactions
    assert table.item_id[:6].tolist() == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert table.timestamp.dtype == np.float64
    assert (table.groupby("user_id").timestamp.diff().dropna() > 0).all()


def test_fractions_are_part_of_the_key(tmp_path):
    lines = f"u1\ti1\t5\t{T}.25\nu1\ti1\t4\t{T}.5\nu1\ti1\t4\t{T}.5\nu1\ti2\t4\t{T}.75\n"
    _, tables = read(tmp_path, HEADER + lines, spec=spec_of(duplicates="keep-all"))
    assert tables.interactions.timestamp.tolist() == [T + 0.25, T + 0.5, T + 0.75]


def test_times_with_four_digits_are_told_as_ties_with_their_cause(tmp_path):
    _, tables = read(tmp_path, HEADER + events(times=lambda n: f"1.60{n % 2}e+09"))
    passed, details = check_ties(tables.interactions)
    assert not passed
    assert details["share"] == 1
    assert details["cause"].startswith("all times end in 6 zeros: the file keeps too few digits, as in 1.601e+09")


# ---- dialects and encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = HEADER.replace("\n", end) + events(user="ü{}", end=end)
    _, tables = read(tmp_path, text.encode(encoding))
    assert tables.users.user_id.tolist() == ["ü0", "ü1", "ü2", "ü3"]


def test_quotes_that_pandas_wrote_into_a_tsv_are_none_of_a_title(tmp_path):
    titles = ['The "first" cream', "Plain", '23" LED', "a", '"Heat"', "c"]
    table = pd.DataFrame({"item_id:token": [f"i{i}" for i in range(6)], "title:token_seq": titles})
    _, tables = read(tmp_path, HEADER + events(), table.to_csv(sep="\t", index=False))
    assert tables.items.title.tolist() == titles
    plain = "item_id:token\ttitle:token_seq\n" + "".join(f"i{i}\t{title}\n" for i, title in enumerate(titles))
    _, tables = read(tmp_path, HEADER + events(), plain)
    assert tables.items.title.tolist() == titles


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_compressed_files_are_found_by_their_plain_name(tmp_path, suffix):
    content = (HEADER + events()).encode()
    compress = {
        ".gz": gzip.compress,
        ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
        ".bz2": __import__("bz2").compress,
        ".xz": __import__("lzma").compress,
    }[suffix]
    (tmp_path / f"shop.inter{suffix}").write_bytes(compress(content))
    assert build_tables(spec_of(), read_raw(spec_of(), tmp_path)).counts["interactions"] == 24


# ---- texts


def test_odd_white_space_in_titles(tmp_path):
    titles = ["a\u0085b", "a\x0bb", "a\x0cb", "a\u2028b", "a\u00a0b", "\u200b"]
    items = "item_id:token\ttitle:token_seq\n" + "".join(f"i{i}\t{title}\n" for i, title in enumerate(titles))
    _, tables = read(tmp_path, HEADER + events(), items)
    assert tables.items.title.tolist() == [*["a b"] * 5, "item i5"]


def test_words_for_nothing_never_reach_a_prompt(tmp_path):
    items = "item_id:token\ttitle:token_seq\tauthor:token\tgenres:token\n"
    items += "i0\tBook\tNULL\tN/A|Drama\ni1\tn/a\tNot Applicable (Na )\tnan\ni2\tB\tA. Writer\t\n"
    (tmp_path / "shop.user").write_text(
        "user_id:token\tlocation:token\nu0\tlisboa, n/a, portugal\nu1\t, , \nu2\tn/a, n/a, n/a\nu3\thub, , usa\n"
    )
    _, tables = read(tmp_path, HEADER + events(items=3), items)
    found = (
        tables.items[["title", "author", "genres"]]
        .astype(object)
        .where(tables.items[["title", "author", "genres"]].notna(), None)
    )
    assert found.to_numpy().tolist() == [["Book", None, "Drama"], ["item i1", None, None], ["B", "A. Writer", None]]
    assert tables.users.location.fillna("").tolist() == ["lisboa, portugal", "", "", "hub, usa"]


# ---- tables of any form


def test_a_csv_without_a_header_and_with_milliseconds(tmp_path):
    rows = [f"A{u},B{i},{1 + i % 5}.0,{(T + i) * 1000 + 7}" for u in range(4) for i in range(6)]
    (tmp_path / "ratings.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    source = {
        "format": "table",
        "files": {"interactions": "ratings.csv"},
        "columns": {"interactions": {"1": "user_id", "2": "item_id", "3": "rating", "4": "timestamp"}},
        "time_unit": "ms",
    }
    table = build_tables(spec_of(source), read_raw(spec_of(source), tmp_path)).interactions
    assert table.user_id.unique().tolist() == ["A0", "A1", "A2", "A3"]
    assert table.timestamp[0] == T + 0.007


def test_json_lines_with_names_of_their_own(tmp_path):
    rows = [
        {"review_id": f"r{n}", "user_id": f"u{n // 6}", "business_id": f"b{n % 6}", "stars": 1.0 + n % 5,
         "text": "nice\nplace", "date": f"2020-09-24 13:19:{n:02}"}
        for n in range(24)
    ]  # fmt: skip
    (tmp_path / "review.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "business.json").write_text(
        json.dumps(
            [{"business_id": f"b{i}", "name": f"Bar {i}", "categories": ["Food", "Bars"]} for i in range(6)], indent=1
        )
    )
    source = {"format": "table", "files": {"interactions": "review.json", "items": "business.json"}}
    tables = build_tables(spec_of(source), read_raw(spec_of(source), tmp_path))
    assert tables.items[["item_id", "title", "category"]].to_numpy().tolist()[1] == ["b1", "Bar 1", "Food > Bars"]
    assert tables.interactions.timestamp.min() == pd.Timestamp("2020-09-24 13:19:00", tz="UTC").timestamp()


def test_parquet_in_parts_as_spark_writes_it(tmp_path):
    folder = tmp_path / "events.parquet"
    folder.mkdir()
    (folder / "_SUCCESS").write_text("")
    for part in range(2):
        table = pa.table(
            {
                "userId": pa.array([1_700_000_000_000_000_000 + u for u in range(4)]),
                "itemId": [f"i{part}"] * 4,
                "rating": pa.array([4.0] * 4, pa.float32()),
                "timestamp": pa.array([(T + part) * 10**6 + 250_000] * 4, pa.timestamp("us")),
            }
        )
        pq.write_table(table, folder / f"part-0000{part}.snappy.parquet")
    source = {"format": "table", "files": {"interactions": "events.parquet"}}
    table = build_tables(spec_of(source), read_raw(spec_of(source), tmp_path)).interactions
    assert table.user_id.unique().tolist() == [1_700_000_000_000_000_000 + u for u in range(4)]
    assert table.timestamp.tolist() == [T + 0.25, T + 1.25] * 4


def test_amazon_of_2023(tmp_path):
    header = "user_id,parent_asin,rating,timestamp,history\n"
    rows = "".join(f"AE{u},B00000000{i},5.0,{(T + i) * 1000 + 123},\n" for u in range(4) for i in range(6))
    (tmp_path / "Beauty.csv.gz").write_bytes(gzip.compress((header + rows).encode()))
    meta = [{"main_category": "All Beauty", "title": f"Cream {i}", "price": None, "categories": ["Beauty", "Face"],
             "details": {"Brand": "X"}, "parent_asin": f"B00000000{i}"} for i in range(8)]  # fmt: skip
    (tmp_path / "meta.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, meta)).encode()))
    spec = spec_of({"format": "amazon-2014", "files": {"interactions": "Beauty.csv.gz", "items": "meta.jsonl.gz"}})
    raw = read_raw(spec, tmp_path)
    tables = build_tables(spec, raw)
    assert len(raw.items) == 6  # only products with reviews
    assert tables.items[["title", "category"]].to_numpy().tolist()[0] == ["Cream 0", "Beauty > Face"]
    assert tables.interactions.timestamp[0] == T + 0.123


def test_a_column_that_an_item_file_lacks_is_told_and_no_error(tmp_path):
    items = "item_id:token\n" + "".join(f"i{i}\n" for i in range(6))
    spec = spec_of({"format": "recbole", "columns": {"items": {"product_name": "title"}}})
    raw, tables = read(tmp_path, HEADER + events(), items, spec)
    assert tables.items.title.tolist() == [f"item i{i}" for i in range(6)]
    assert raw.warnings == ("shop.item: there is no column 'product_name', which the data set names.",)


def test_columns_that_differ_in_case_only_or_are_called_as_ours_inside(tmp_path):
    (tmp_path / "shop.csv").write_text(
        "user_id,item_id,rating,timestamp,Note,note,n,file\n" + f"u1,i1,5,{T},a,b,c,d\nu1,i2,5,{T + 1},a,b,c,d\n"
    )
    raw = read_raw(spec_of({"format": "table", "files": {"interactions": "shop.csv"}}), tmp_path)
    assert raw.interactions[["Note", "n", "file"]].to_numpy().tolist() == [["a", "c", "d"]] * 2


def test_columns_of_any_name_beside_ours(tmp_path):
    names = "n,file,line,place,written,chosen,m,f,found,order,rating,timestamp"
    rows = "".join(f"i{i},[1984],{','.join('x' * 12)}\n" for i in range(6))
    (tmp_path / "things.csv").write_text(f"item_id,title,{names}\n{rows}")
    events_too = "".join(f"u{u},i{i},{5},{T},{9 - i}\n" for u in range(3) for i in range(6))
    (tmp_path / "shop.csv").write_text(f"user_id,item_id,rating,timestamp,n\n{events_too}")
    spec = spec_of({"format": "table", "files": {"interactions": "shop.csv", "items": "things.csv"}})
    tables = build_tables(spec, read_raw(spec, tmp_path))
    assert tables.items.title.tolist() == ["[1984]"] * 6
    assert tables.interactions.item_id[:6].tolist() == [f"i{i}" for i in range(6)]  # ties keep the order of the file


@pytest.mark.parametrize("fields", [{"time_unit": "%Q"}, {"delimiter": "::", "quote": '"'}, {"encoding": "klingon"}])
def test_settings_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields)).replace("delimiter", "`quote`")):
        spec_of({"format": "table", **fields})


def test_words_with_braces_and_bytes_outside_of_an_encoding(tmp_path):
    source = {"format": "table", "files": {"interactions": "shop.csv"}, "null_values": ["{}"], "encoding": "cp1252"}
    text = f"user_id,item_id,rating,timestamp\nJosé,i1,5,{T}\n".encode("cp1252")
    (tmp_path / "shop.csv").write_bytes(text + f"{{}},i2,5,{T}\nA\x81,i1,5,{T}\nA\x8d,i1,5,{T}\n".encode("latin-1"))
    raw = read_raw(spec_of(source, quarantine_limit=1.0), tmp_path)
    assert raw.interactions.user_id.tolist() == ["José"]
    assert list(zip(raw.quarantine.line, raw.quarantine.reason, strict=True)) == [
        (3, "user_id '{}' means nothing"),
        (4, "not valid utf-8"),
        (5, "not valid utf-8"),
    ]


def test_parts_of_one_name_in_several_folders(tmp_path):
    for day in ("1", "2", "_temporary"):
        folder = tmp_path / "events" / f"day={day}"
        folder = folder if day != "_temporary" else tmp_path / "events" / day
        folder.mkdir(parents=True)
        (folder / "part-0.csv").write_text(f"user_id,item_id,rating,timestamp\nu{day},i,5,{T}\nu{day},j,9,{T}\n")
    source = {"format": "table", "files": {"interactions": "events"}}
    raw = read_raw(spec_of(source, quarantine_limit=0.5), tmp_path)
    assert raw.quarantine.file.tolist() == ["day=1/part-0.csv", "day=2/part-0.csv"]
    assert [(source["file"], source["rows"]) for source in raw.sources] == [
        ("day=1/part-0.csv", 1),
        ("day=2/part-0.csv", 1),
    ]


def test_lists_of_what_users_were_shown(tmp_path):
    (tmp_path / "behaviors.tsv").write_text(
        "1\tU1\t11/13/2019 8:36:57 AM\tN9 N8\tN1-0 N2-1 N3-1\n"
        "2\tU2\t11/13/2019 8:37:57 PM\t\tN1-1\n"
        "3\tU1\t11/14/2019 8:36:57 AM\tN9\tN4 N2-0\n"
        "4\tU3\t11/14/2019 8:36:57 AM\tN9\t\n"
    )
    found = {}
    for kind in ("clicks", "impressions"):
        columns = {"interactions": {"2": "user_id", "3": "timestamp", "5": kind}}
        source = {"format": "table", "files": {"interactions": "behaviors.tsv"}, "time_unit": "%m/%d/%Y %I:%M:%S %p"}
        scale = {"rating_scale": [0, 1]} if kind == "impressions" else {"rating_scale": None}
        raw = read_raw(spec_of(source | {"columns": columns}, quarantine_limit=1.0, **scale), tmp_path)
        names = ["user_id", "item_id", *(["rating"] if kind == "impressions" else []), "timestamp"]
        found[kind] = list(raw.interactions[names].itertuples(index=False, name=None))
        assert list(raw.quarantine[["line", "text"]].itertuples(index=False, name=None)) == [
            (3, "3\tU1\t11/14/2019 8:36:57 AM\tN9\tN4 N2-0"),
        ]
    morning, evening, next_day = 1573634217, 1573677477, 1573720617
    assert found["clicks"] == [("U1", "N2", morning), ("U1", "N3", morning), ("U2", "N1", evening)]
    assert found["impressions"] == [
        ("U1", "N1", 0.0, morning),
        ("U1", "N2", 1.0, morning),
        ("U1", "N3", 1.0, morning),
        ("U2", "N1", 1.0, evening),
        ("U1", "N2", 0.0, next_day),
    ]


def test_a_list_that_the_file_lacks_is_named(tmp_path):
    (tmp_path / "shop.csv").write_text(f"user_id,timestamp,shown\nu1,{T},a-1\n")
    columns = {"interactions": {"seen": "clicks"}}
    spec = spec_of({"format": "table", "files": {"interactions": "shop.csv"}, "columns": columns})
    with pytest.raises(InputError, match=r"shop.csv: there is no column 'seen'"):
        read_raw(spec, tmp_path)


def test_the_order_of_rows_outlasts_ids_that_are_written_again(tmp_path):
    numbers = np.random.default_rng(0).permutation(300_000)  # more than DuckDB keeps together
    (tmp_path / "shop.csv").write_text(
        "user_id,item_id,rating,timestamp\n" + "".join(f"{n % 1000}.0,{n},5,{T}\n" for n in numbers.tolist())
    )
    raw = read_raw(spec_of({"format": "table", "files": {"interactions": "shop.csv"}}), tmp_path)
    assert (raw.interactions.item_id.to_numpy() == numbers).all()
    assert (raw.interactions.user_id.to_numpy() == numbers % 1000).all()


def test_a_file_of_bad_rows_only_is_refused_with_the_first_ones(tmp_path):
    (tmp_path / "shop.csv").write_text("user_id,item_id,rating,timestamp\n" + f"u1,i1,5,{T},\n" * 5000)
    with pytest.raises(InputError, match=r"5000 of 5000 rows cannot be read .* line 2: 5 values instead of 4 .*; …"):
        read_raw(spec_of({"format": "table", "files": {"interactions": "shop.csv"}}), tmp_path)
    (tmp_path / "shop.csv").write_text('{"user_id": 1}\n' + "[1]\n" * 5000)
    columns = {"interactions": {"u": "user_id", "i": "item_id", "r": "rating", "t": "timestamp"}}
    (tmp_path / "shop.csv").write_text('{"u": 1, "i": 2, "r": 3, "t": 1600000000}\n' + "[1]\n" * 5000)
    with pytest.raises(InputError, match=r"5000 of 5001 rows cannot be read .* line 2: not one object per line"):
        read_raw(spec_of({"format": "table", "files": {"interactions": "shop.csv"}, "columns": columns}), tmp_path)


@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_a_frame_written_as_one_object_is_refused(tmp_path, orient):
    frame = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "rating": [5, 4], "timestamp": [T, T + 1]})
    frame.to_json(tmp_path / "shop.json", orient=orient)
    with pytest.raises(InputError, match=r"shop.json: the file is one object that holds all rows; .*orient='records'"):
        read_raw(spec_of({"format": "table", "files": {"interactions": "shop.json"}}), tmp_path)


def test_utf_32(tmp_path):
    (tmp_path / "shop.csv").write_bytes(f"user_id,item_id,rating,timestamp\nJosé,i1,5,{T}\n".encode("utf-32"))
    raw = read_raw(spec_of({"format": "table", "files": {"interactions": "shop.csv"}}), tmp_path)
    assert raw.interactions.user_id.tolist() == ["José"]


def test_binary_ids_are_shown_as_bytes_if_they_are_no_text(tmp_path):
    table = {"user_id": [b"u1", b"\xab\xff"], "item_id": ["a", "b"], "rating": [5, 4], "timestamp": [T, T + 1]}
    pq.write_table(pa.table(table), tmp_path / "shop.parquet")
    raw = read_raw(spec_of({"format": "table", "files": {"interactions": "shop.parquet"}}), tmp_path)
    assert raw.interactions.user_id.tolist() == ["u1", "\\xAB\\xFF"]


def test_items_of_amazons_literals_whose_ids_are_spelled_otherwise(tmp_path):
    review = {"reviewerID": "A1", "overall": 5.0, "unixReviewTime": T}
    (tmp_path / "r.json").write_text(
        "".join(json.dumps(review | {"asin": asin}) + "\n" for asin in ("155061224x", "155061224X", "B1"))
    )
    lines = [{"asin": "155061224X", "title": "A"}, {"asin": "B1", "title": "It's"}, {"asin": "B2", "title": "C"}]
    (tmp_path / "m.json").write_text("".join(repr(line) + "\n" for line in lines))
    source = {"format": "amazon-2014", "files": {"interactions": "r.json", "items": "m.json"}}
    raw = read_raw(spec_of(source), tmp_path)
    assert raw.items[["item_id", "title"]].to_numpy().tolist() == [["155061224X", "A"], ["B1", "It's"]]


def test_a_column_called_as_ours_gives_way_to_the_one_that_is_mapped(tmp_path):
    rows = [{"username": "a", "user_id": "", "product_id": "x", "date": "2017-12-17"}, {"username": "b", "user_id": 7}]
    (tmp_path / "shop.json").write_text("\n".join(json.dumps(rows[0] | row) for row in rows))
    columns = {"interactions": {"username": "user_id", "product_id": "item_id"}}
    source = {"format": "table", "files": {"interactions": "shop.json"}, "columns": columns}
    raw = read_raw(spec_of(source, rating_scale=None), tmp_path)
    assert raw.interactions.user_id.tolist() == ["a", "b"]


def test_the_share_of_bad_rows_is_that_of_all_parts(tmp_path):
    (tmp_path / "parts").mkdir()
    header, source = "user_id,item_id,rating,timestamp\n", {"format": "table", "files": {"interactions": "parts"}}
    (tmp_path / "parts" / "a.csv").write_text(header + "".join(f"u{n},i,5,{T}\n" for n in range(300)))
    (tmp_path / "parts" / "b.csv").write_text(header + f",i,5,{T}\n")
    raw = read_raw(spec_of(source), tmp_path)
    assert raw.quarantine[["file", "line"]].to_numpy().tolist() == [["b.csv", 2]]
    (tmp_path / "parts" / "b.csv").write_text(header + f",i,5,{T}\n" * 4)
    with pytest.raises(InputError, match=r"^a\.csv and 1 more: 4 of 304 rows cannot .*\. b\.csv, line 2: user_id"):
        read_raw(spec_of(source), tmp_path)


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (f"José,i,5,{T}", 'in another encoding, name it in the source: `encoding = "cp1252"`.'),
        ("u,i,5,", "Correct the file, or raise the data set's `quarantine_limit`."),
        (f"u,i,9,{T}", "Correct the file, or raise the data set's `quarantine_limit`."),
        (f"u,i,5,{T}000", 'set `time_unit = "ms"` in the source.'),
    ],
)
def test_what_to_do_about_bad_rows_follows_from_what_most_of_them_lack(tmp_path, row, advice):
    text = f"user_id,item_id,rating,timestamp\nu,i,5,{T}\nu,i,5,\n" + f"{row}\n" * 5
    (tmp_path / "shop.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_raw(spec_of({"format": "table", "files": {"interactions": "shop.csv"}}), tmp_path)
    assert str(caught.value).endswith(advice)


def table(file="shop.csv", **source):
    """A source of the format `table`."""
    return {"format": "table", "files": {"interactions": file}} | source


def test_values_that_equal_a_place_make_no_header(tmp_path):
    columns = {"interactions": {"1": "user_id", "2": "item_id", "3": "rating", "4": "timestamp"}}
    (tmp_path / "shop.csv").write_text(f"1,10,5,{T}\n1,11,4,{T + 1}\n2,10,3,{T + 2}\n")
    assert len(read_raw(spec_of(table(columns=columns)), tmp_path).interactions) == 3


def test_many_bad_lines_are_refused_though_the_good_ones_hold_many_items(tmp_path):
    columns = {"interactions": {"shown": "clicks"}}
    lines = [f"u,{T},{' '.join(f'i{n}-1' for n in range(20))}\n"] * 89 + ["only,two\n"] * 11
    (tmp_path / "shop.csv").write_text("user_id,timestamp,shown\n" + "".join(lines))
    spec = spec_of(table(columns=columns), quarantine_limit=0.1, rating_scale=None)
    with pytest.raises(InputError, match=r"cannot be read .* line 91: 2 values instead of 3"):
        read_raw(spec, tmp_path)
    raw = read_raw(spec.model_copy(update={"quarantine_limit": 0.2}), tmp_path)
    assert (len(raw.quarantine), len(raw.interactions)) == (11, 89 * 20)


@pytest.mark.parametrize("kind", ["parquet", "array"])
def test_bad_entries_of_lists_are_shown_with_their_row(tmp_path, kind):
    rows = [("z", "N1-1 N2-1 N3-1"), ("a", "x y"), ("b", "N3-1"), ("c", "N1-1,N2-0"), ("d", "N1-0|N2-1")]
    frame = pd.DataFrame(rows, columns=["user_id", "shown"]).assign(timestamp=T)
    if kind == "parquet":
        frame.to_parquet(tmp_path / "shop.csv")
    else:
        frame.to_json(tmp_path / "shop.csv", orient="records")
    spec = spec_of(table(columns={"interactions": {"shown": "clicks"}}), rating_scale=None, quarantine_limit=1.0)
    raw = read_raw(spec, tmp_path)
    assert raw.interactions.item_id.tolist() == ["N1", "N2", "N3", "N3"]
    assert raw.quarantine.line.tolist() == [2, 2, 4, 5]
    assert [next(one for one in "abcdz" if one in text) for text in raw.quarantine.text.str.slice(0, 14)] == list(
        "aacd"
    )


def test_files_of_one_name_in_two_roles_are_judged_apart(tmp_path):
    for role, text in (
        ("ev", "user_id,item_id,rating,timestamp\n" + f"u,i,5,{T}\n" * 100 + f",i,5,{T}\n" * 3),
        ("it", "item_id,title\n" + "".join(f"{name},{name}\n" for name in "ijklmnopqr")),
    ):
        (tmp_path / role).mkdir()
        (tmp_path / role / "part-0.csv").write_text(text)
    source = {"format": "table", "files": {"interactions": "ev", "items": "it"}}
    raw = read_raw(spec_of(source, quarantine_limit=0.05), tmp_path)
    assert raw.quarantine.file.tolist() == ["ev/part-0.csv"] * 3
    counts = build_tables(spec_of(source), raw).counts
    assert (counts["interactions_quarantined"], counts["items_quarantined"]) == (3, 0)


def test_one_file_of_two_roles(tmp_path):
    (tmp_path / "shop.csv").write_text(
        f"user_id,item_id,rating,timestamp,title\nu,i,5,{T},A\nu,j,9,{T},B\nu,i,5,{T},A\n"
    )
    source = {"format": "table", "files": {"interactions": "shop.csv", "items": "shop.csv"}}
    raw = read_raw(spec_of(source, quarantine_limit=0.4), tmp_path)
    assert [one["file"] for one in raw.sources] == ["shop.csv", "shop.csv (items)"]
    assert raw.items[["item_id", "title"]].to_numpy().tolist() == [["i", "A"], ["j", "B"]]


def test_empty_parts_and_files_on_the_data_are_no_parts(tmp_path):
    (tmp_path / "ev").mkdir()
    (tmp_path / "ev" / "a.csv").write_text(f"user_id,item_id,rating,timestamp\nu,i,5,{T}\n")
    (tmp_path / "ev" / "b.csv").touch()
    (tmp_path / "ev" / "c.csv.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "ev" / "README.md").write_text("# Data\n")
    raw = read_raw(spec_of(table("ev")), tmp_path)
    assert len(raw.interactions) == 1
    assert raw.warnings == ("b.csv: the file is empty.", "c.csv.gz: the file is empty.")
    (tmp_path / "ev" / "a.csv").unlink()
    with pytest.raises(InputError, match=r"b\.csv: the file holds no rows"):
        read_raw(spec_of(table("ev")), tmp_path)


def test_of_words_on_one_line_the_more_regular_delimiter_wins():
    lines = ["m1,Lock, Stock,Crime|Comedy", "m2,Heat,Crime", "m3,Up,A|B", "m4,It,Drama", "m5,Her,Drama"]
    assert find_delimiter(lines) == ","
    spanning = [line for n in range(9) for line in (f'soup;{n};"one, two, three', "four, five", 'six, seven, eight"')]
    assert find_delimiter(["Name;Id;Steps", *spanning]) == ";"
    assert find_delimiter(["Name;Id;Tags", *(f"x;{n};['a', 'b', 'c', 'd']" for n in range(9))]) == ";"


def test_a_line_above_the_names_is_shown(tmp_path):
    rows = "".join(f"u{n},i,5,{T}\n" for n in range(9))
    (tmp_path / "shop.csv").write_text("# exported, 2024\nuser_id,item_id,rating,timestamp\n" + rows)
    with pytest.raises(InputError, match=r"the first line has 2 values, the others have 4; it is '# exported, 2024'"):
        read_raw(spec_of(table()), tmp_path)


def test_one_accent_is_utf8_and_utf16_needs_no_mark(tmp_path):
    text = f"user_id,item_id,rating,timestamp\nJosé,i,5,{T}\n"
    (tmp_path / "shop.csv").write_text(text)
    assert read_raw(spec_of(table(encoding="cp1252")), tmp_path).interactions.user_id.tolist() == ["José"]
    (tmp_path / "shop.csv").write_text(text.replace("é", "e"))
    assert read_raw(spec_of(table(encoding="utf-16")), tmp_path).interactions.user_id.tolist() == ["Jose"]
    (tmp_path / "shop.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(InputError, match=r"shop\.csv: the file is not written in utf-16; correct `encoding`"):
        read_raw(spec_of(table(encoding="utf-16")), tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_with_the_name_that_duckdb_takes(tmp_path, kind):
    frame = pd.DataFrame({"file_row_number": [7], "user_id": ["u"], "item_id": ["i"], "rating": [5], "timestamp": [T]})
    frame.to_parquet(tmp_path / "shop.csv") if kind == "parquet" else frame.to_csv(tmp_path / "shop.csv", index=False)
    raw = read_raw(spec_of(table()), tmp_path)
    assert build_tables(spec_of(table()), raw).counts["interactions"] == 1


def test_a_blank_before_an_open_quote_costs_one_line(tmp_path):
    rows = "".join(f"u{n},i,5,{T}\n" for n in range(30))
    (tmp_path / "shop.csv").write_text(f'user_id,item_id,rating,timestamp\n{rows}u9, "i9,4,{T}\n{rows}')
    raw = read_raw(spec_of(table(), quarantine_limit=0.1), tmp_path)
    assert (len(raw.interactions), raw.quarantine.line.tolist()) == (60, [32])


def test_columns_without_names_may_be_several(tmp_path):
    (tmp_path / "shop.csv").write_text(f",user_id,item_id,rating,timestamp,\n0,u,i,5,{T},\n")
    assert read_raw(spec_of(table()), tmp_path).interactions.user_id.tolist() == ["u"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [("u,i,1.5x,{T}", "rating '1.5x' is not a number"), ("u,i,5,13/09/21", r"set `time_unit = \"%d/%m/%y\"`")],
)
def test_where_every_row_is_bad_the_reason_is_told(tmp_path, row, reason):
    (tmp_path / "shop.csv").write_text("user_id,item_id,rating,timestamp\n" + row.replace("{T}", str(T)) + "\n")
    with pytest.raises(InputError, match=f"shop.csv: 1 of 1 rows cannot be read. line 2: .*{reason}"):
        read_raw(spec_of(table(), quarantine_limit=1.0), tmp_path)


@pytest.mark.parametrize("text", ['{"a":1}{"a":2}', '{\n  "user_id": 1\n}', "{}", "[]", "[1, 2]"])
def test_a_file_that_holds_no_objects_says_so(tmp_path, text):
    (tmp_path / "shop.json").write_text(text)
    with pytest.raises(InputError, match=r"shop\.json: .* holds? (an object|no objects)"):
        read_raw(spec_of(table("shop.json")), tmp_path)


def test_lists_and_objects_are_no_ids(tmp_path):
    rows = [{"user_id": user, "item_id": "i", "rating": 5, "timestamp": T} for user in ({"$oid": "6f"}, ["x"], "[a")]
    (tmp_path / "shop.json").write_text("\n".join(map(json.dumps, rows)))
    raw = read_raw(spec_of(table("shop.json"), quarantine_limit=1.0), tmp_path)
    assert raw.interactions.user_id.tolist() == ["[a"]
    assert raw.quarantine.reason.str.endswith("is a list or an object; write one value there").all()


def test_the_text_of_a_bad_row_is_that_of_its_line(tmp_path):
    (tmp_path / "shop.csv").write_text('user_id,item_id\n1,2\n3,4\n""a ,""a\n\n5,6\n7\n')
    spec = spec_of(table(), quarantine_limit=1.0, rating_scale=None, time="none")
    raw = read_raw(spec, tmp_path)
    assert raw.quarantine[["line", "text"]].to_numpy().tolist() == [[4, '""a ,""a'], [7, "7"]]


def test_bad_rows_beyond_a_million_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("rarec.data.formats.table.MANY", 20)
    (tmp_path / "ev").mkdir()
    for part in range(3):
        (tmp_path / "ev" / f"{part}.csv").write_text("user_id,item_id,rating,timestamp\n" + f"u,i,9,{T}\n" * 15)
    with (tmp_path / "ev" / "0.csv").open("a") as file:
        file.write(f"u,i,5,{T}\n")
    with pytest.raises(InputError, match=r"^0\.csv and 2 more: 45 of 46 rows cannot be read"):
        read_raw(spec_of(table("ev"), quarantine_limit=1.0), tmp_path)


def test_lists_may_be_lists(tmp_path):
    frame = pd.DataFrame({"user_id": ["a", "b", "c"], "shown": [["N1-1", "N2-0"], [], ["N3-1"]], "timestamp": T})
    spec = spec_of(table("shop", columns={"interactions": {"shown": "clicks"}}), rating_scale=None)
    frame.to_parquet(tmp_path / "shop")
    parquet = read_raw(spec, tmp_path)
    frame.to_json(tmp_path / "shop", orient="records", lines=True)
    for raw in (parquet, read_raw(spec, tmp_path)):
        assert raw.interactions[["user_id", "item_id"]].to_numpy().tolist() == [["a", "N1"], ["c", "N3"]]
        assert raw.quarantine.empty


def test_blank_lines_between_objects_count_as_lines(tmp_path):
    row = {"user_id": "u", "item_id": "i", "rating": 5, "timestamp": T}
    lines = ["", json.dumps(row), "{bad", json.dumps(row | {"user_id": "b", "rating": 9}), "", "  ", json.dumps(row)]
    (tmp_path / "shop.json").write_text("\n".join(["", *lines[1:]]))
    raw = read_raw(spec_of(table("shop.json"), quarantine_limit=1.0), tmp_path)
    assert raw.quarantine[["line", "reason"]].to_numpy().tolist() == [
        [3, "not one object per line"],
        [4, "rating '9' is outside 1 to 5"],
    ]
    assert raw.quarantine.text.tolist() == ["{bad", lines[3]]
    assert len(raw.interactions) == 2


@pytest.mark.parametrize("blank", ["", "\n"])
def test_a_line_that_duckdb_reads_otherwise_makes_no_row_up(tmp_path, blank):
    rows = f'u1,i1,5,{T}\n""a""x,1,",,"a,i,4,{T}\nu2,i2,4,{T}\n'
    (tmp_path / "shop.csv").write_text(f"user_id,item_id,rating,timestamp\n{blank}{rows}")
    raw = read_raw(spec_of(table(), quarantine_limit=1.0), tmp_path)
    assert raw.interactions.user_id.tolist() == ["u1", "u2"]
    assert raw.quarantine.line.tolist() == [3 + len(blank)]


def test_blanks_before_a_quote_cost_one_line_at_most(tmp_path):
    rows = "".join(f"u{n},i,5,{T},x\n" for n in range(30))
    odd = f'a,i,5,{T},  "so, so,"\nb,i,5,{T}, "so, so"\nc,i,5,{T}, "Great" film\n'
    (tmp_path / "shop.csv").write_text(f"user_id,item_id,rating,timestamp,text\n{rows}{odd}{rows}")
    raw = read_raw(spec_of(table(), quarantine_limit=0.1), tmp_path)
    assert len(raw.interactions) == 61
    assert raw.quarantine.line.tolist() == [32, 34]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_names_of_folders_are_no_columns(tmp_path, kind):
    folder = tmp_path / "user_id=zzz"
    folder.mkdir()
    frame = pd.DataFrame({"user_id": ["a"], "item_id": ["i"], "rating": [5], "timestamp": [T]})
    frame.to_parquet(folder / "shop.csv") if kind == "parquet" else frame.to_csv(folder / "shop.csv", index=False)
    (folder / "raw").mkdir()
    raw = read_raw(spec_of(table()), folder, folder / "raw")
    assert raw.interactions.user_id.tolist() == ["a"]
    assert build_tables(spec_of(table()), raw).interactions.user_id.tolist() == ["a"]


def test_advice_that_fits_one_part_only_is_not_given(tmp_path):
    (tmp_path / "ev").mkdir()
    header = "user_id,item_id,rating,timestamp\n"
    (tmp_path / "ev" / "a.csv").write_text(header + f"u,i,9,{T}\n" * 50)
    (tmp_path / "ev" / "b.csv").write_text(header + f"u,i,5,{T}000\n")
    with pytest.raises(InputError, match=r"51 of 51 rows .* Correct the file, or raise"):
        read_raw(spec_of(table("ev")), tmp_path)


@pytest.mark.parametrize("blank", ["\n", "\ufeff", "[]"])
def test_a_part_without_rows_is_no_fault(tmp_path, blank):
    (tmp_path / "ev").mkdir()
    (tmp_path / "ev" / "a.csv").write_text(f"user_id,item_id,rating,timestamp\nu,i,5,{T}\n")
    (tmp_path / "ev" / "b.csv").write_text(blank)
    raw = read_raw(spec_of(table("ev")), tmp_path)
    assert raw.warnings == ("b.csv: the file is empty.",)
