"""`make dataset`: what is found in a file, and that its declaration reads it."""

import gzip
import json
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

from rarec.data.formats.declaring import slug, write
from rarec.data.formats.table import find_unit
from rarec.data.raw import read_raw
from rarec.data.readers.connection import connection
from rarec.data.spec import load_specs
from rarec.data.tables import build_tables
from rarec.errors import InputError

T = 1_600_000_000


def declared(tmp_path, file, **more):
    """What was printed, the declaration, and the clean tables that it leads to."""
    told = write(tmp_path / "shop" / file, more.get("items", ""), more.get("users", ""), "", tmp_path / "datasets")
    spec = load_specs(tmp_path / "datasets").specs["shop"].model_copy(update={"quarantine_limit": 1.0})
    text = (tmp_path / "datasets" / "shop.toml").read_text()
    return told, tomllib.loads(text), build_tables(spec, read_raw(spec, tmp_path / "shop"))


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "shop").mkdir()
    return tmp_path / "shop"


def test_a_csv_without_a_header_by_what_its_columns_hold(tmp_path, shop):
    rows = [f"A{u},{i:010},{(T + i) * 1000 + 5},{1 + i % 5}.0" for u in range(4) for i in range(6)]
    (shop / "ratings.csv.gz").write_bytes(gzip.compress("\n".join([*rows, "A9,,5,1"]).encode()))
    told, found, tables = declared(tmp_path, "ratings.csv.gz")
    assert told.startswith("24 of 25 interactions can be read.\n  ratings.csv.gz, line 25: item_id is empty")
    (source,) = found["sources"]
    assert source["columns"]["interactions"] == {"1": "user_id", "2": "item_id", "3": "timestamp", "4": "rating"}
    assert (source["time_unit"], source["header"], found["rating_scale"]) == ("ms", False, [1, 5])
    assert tables.interactions.timestamp[0] == T + 0.005


def test_objects_with_names_of_their_own_and_items(tmp_path, shop):
    rows = [
        {"user_id": f"u{n // 6}", "business_id": f"b{n % 6}", "stars": n % 5, "date": f"2020-09-24 13:19:{n:02}"}
        for n in range(24)
    ]
    (shop / "review.json").write_text("\n".join(map(json.dumps, rows)))
    (shop / "business.json").write_text(
        "\n".join(json.dumps({"business_id": f"b{i}", "name": f"B {i}"}) for i in range(6))
    )
    told, found, tables = declared(tmp_path, "review.json", items="business.json")
    assert told.startswith(
        "24 of 24 interactions can be read.\n6 of 6 items can be read.\nOf these, 24 interactions of 4 users"
    )
    assert found["sources"] == [{"format": "table", "files": {"interactions": "review.json", "items": "business.json"}}]
    assert tables.items.title.tolist() == [f"B {i}" for i in range(6)]


def test_latin_text_and_no_times(tmp_path, shop):
    text = "customer;product\n" + "".join(f"J{u}sé;Stück {i}\n" for u in range(3) for i in range(4))
    (shop / "orders.csv").write_bytes(text.encode("cp1252"))
    _, found, tables = declared(tmp_path, "orders.csv")
    assert (found["time"], found["sources"][0]["encoding"]) == ("none", "cp1252")
    assert "rating_scale" not in found
    assert tables.users.user_id.tolist() == ["J0sé", "J1sé", "J2sé"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("colour,size\nred,5\n", r"orders\.csv: no column looks like user_id; it has 'colour', 'size'\. Write"),
        ("PK\x03\x04 and so on", r"orders\.csv: the file is a zip archive or an Excel workbook"),
        ("one column only\nx\n", r"orders\.csv: its columns cannot be told apart"),
        ("", r"orders\.csv: the file is empty"),
    ],
)
def test_what_cannot_be_declared_says_why(tmp_path, shop, content, message):
    (shop / "orders.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        declared(tmp_path, "orders.csv")
    assert not (tmp_path / "datasets").exists()


def test_nothing_is_overwritten_and_nothing_made_up(tmp_path, shop):
    (shop / "orders.csv").write_text(f"user_id,item_id,timestamp\nu,i,{T}\n")
    declared(tmp_path, "orders.csv")
    with pytest.raises(InputError, match=r"shop\.toml exists; remove it, or choose another name with NAME="):
        declared(tmp_path, "orders.csv")
    with pytest.raises(InputError, match="there is no such file"):
        write(shop / "other.csv", "", "", "other", tmp_path / "datasets")
    command = [sys.executable, "-m", "rarec.data.formats.declaring", "", "--datasets", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "error: name the file of interactions: make dataset FILE=<file>\n")


@pytest.mark.parametrize(("text", "name"), [("My Shop (2024)", "my-shop-2024"), ("..x_y", "x_y"), ("日本", "own")])
def test_names(text, name):
    assert slug(text) == name


def test_lists_of_what_users_were_shown(tmp_path, shop):
    (shop / "behaviors.tsv").write_text(
        "".join(
            f"{n}\tU{n % 5}\t11/{13 + n % 9}/2019 {1 + n % 12}:36:57 PM\tN9 N8\tN{n % 7}-0 N{n % 4}-1 N{n % 6}-0\n"
            for n in range(60)
        )
    )
    (shop / "news.tsv").write_text("".join(f"N{i}\tsports\tTitle {i}\turl\n" for i in range(7)))
    told, found, tables = declared(tmp_path, "behaviors.tsv", items="news.tsv")
    assert told.startswith("60 of 60 interactions can be read.")
    (source,) = found["sources"]
    assert source["time_unit"] == "%m/%d/%Y %I:%M:%S %p"
    assert source["columns"] == {
        "interactions": {"2": "user_id", "3": "timestamp", "5": "clicks"},
        "items": {"1": "item_id", "3": "title"},
    }
    assert tables.items.title.tolist() == ["Title 0", "Title 1", "Title 2", "Title 3"]


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("11/13/2019 8:36:57 AM", "%m/%d/%Y %I:%M:%S %p"),
        ("13/11/2019", "%d/%m/%Y"),
        ("01/02/2019", None),  # January or February
        ("09 13, 2009", "%m %d, %Y"),
        ("September 3, 2010", "%B %d, %Y"),
        ("2018-03-04 12:33", "s"),  # ISO text needs no unit
        ("20190403", "days"),
    ],
)
def test_the_unit_of_times_is_told_only_if_it_is_plain(text, unit):
    with connection() as database:
        database.execute("CREATE TABLE texts AS SELECT ? AS c0", [text])
        assert find_unit(database, "c0", "SELECT c0 FROM texts", 2e9) == unit


def events(rows):
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def test_times_whose_column_has_no_known_name_are_found_by_content(tmp_path, shop):
    rows = [(u, i, 5 - i % 2, f"2018-03-{i + 1:02} 12:33", "x") for u in range(3) for i in range(6)]
    (shop / "orders.csv").write_text("User ID,Recipe ID,Rating,Date of review,Note\n" + events(rows))
    _, found, _ = declared(tmp_path, "orders.csv")
    assert "time" not in found
    assert found["sources"][0]["columns"] == {"interactions": {"Date of review": "timestamp"}}
    assert '# not used of orders.csv: "Note"' in (tmp_path / "datasets" / "shop.toml").read_text()


def test_of_two_columns_that_may_be_ids_the_one_that_is_filled_is_taken(tmp_path, shop):
    rows = [
        {"username": f"n{u}", "product_id": i, "date": "2017-12-17"} | ({"user_id": u} if u == 0 else {})
        for u in range(3)
        for i in range(6)
    ]
    (shop / "reviews.json").write_text("\n".join(map(repr, rows)))
    told, found, tables = declared(tmp_path, "reviews.json")
    assert told.startswith("18 of 18 interactions can be read.")
    assert found["sources"][0]["columns"] == {"interactions": {"username": "user_id"}}
    assert tables.users.user_id.tolist() == ["n0", "n1", "n2"]


@pytest.mark.parametrize("odd", ["NaN", "inf", "-inf", ""])
def test_the_scale_is_that_of_the_ratings_which_are_numbers(tmp_path, shop, odd):
    rows = [(u, i, i, T + i) for u in range(3) for i in range(6)]
    (shop / "orders.csv").write_text("user_id,item_id,rating,timestamp\n" + events([*rows, (0, 9, odd, T)]))
    told, found, _ = declared(tmp_path, "orders.csv")
    assert told.startswith("18 of 19 interactions can be read.")
    assert found["rating_scale"] == [0, 5]
    assert "# implicit_rating = 0        # if 0 means no rating; then rating_scale = [1, 5]" in (
        (tmp_path / "datasets" / "shop.toml").read_text()
    )


def test_lists_in_the_rows_do_not_hide_the_delimiter_of_the_header(tmp_path, shop):
    (shop / "orders.csv").write_text(
        f"user_id,item_id,timestamp\n{events((u, i, T + i) for u in range(3) for i in range(6))}"
    )
    rows = "".join(f"Soup {i};{i};['a{i}', 'b', 'c', 'd', 'e']\n" for i in range(6))
    (shop / "things.csv").write_bytes(("Name;Item ID;Tags\nCrème;9;['x', 'y']\nPâté;8;[]\n" + rows).encode("cp1252"))
    _, found, tables = declared(tmp_path, "orders.csv", items=str(shop / "things.csv"))
    assert found["sources"][0]["files"]["items"] == "things.csv"
    assert tables.items.title.tolist() == [f"Soup {i}" for i in range(6)]


def test_what_stands_against_a_run_is_told(tmp_path, shop):
    rows = [(u, i, T + i) for u in range(3) for i in range(6)]
    (shop / "orders.csv").write_text("user_id,item_id,timestamp\n" + events([*rows, ("", 1, T), (5, "", T)]))
    (shop / "things.csv").write_text("item_id,title\nx,X\ny,Y\n")
    told, *_ = write(shop / "orders.csv", "", "", "", tmp_path / "datasets").splitlines(), None
    assert told[3].startswith("  A run refuses this, as at most 1% of the rows may be bad: ")
    told = write(shop / "orders.csv", "things.csv", "", "b", tmp_path / "datasets")
    assert "A run refuses this: b: all interactions were dropped (18 have items that the item file lacks); " in told
    with pytest.raises(InputError, match=r"\.\./y\.csv: the file must be in .*/shop, beside"):
        write(shop / "orders.csv", "../y.csv", "", "c", tmp_path / "datasets")
    with pytest.raises(InputError, match=r"a pattern may stand for names only; name the folder"):
        write(tmp_path / "*" / "orders.csv", "", "", "d", tmp_path / "datasets")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("price_cents", "{n}"),
        ("order_no", "{m}"),
        ("birthday", "1991-05-{d:02}"),
        ("update_date", "2020-01-01"),
    ],
)
def test_numbers_and_other_dates_are_not_taken_for_the_time(tmp_path, shop, name, value):
    rows = [(u, i, value.format(n=7999 + 500 * i, m=T + 6 * u + i, d=i + 1)) for u in range(3) for i in range(6)]
    (shop / "orders.csv").write_text(f"user_id,item_id,{name}\n" + events(rows))
    _, found, _ = declared(tmp_path, "orders.csv")
    assert found["time"] == "none"
    assert "columns" not in found["sources"][0]


def test_the_times_that_were_read_are_told(tmp_path, shop):
    (shop / "orders.csv").write_text("user_id,item_id,bought_at\n" + events((1, i, T + 86400 * i) for i in range(6)))
    told, found, _ = declared(tmp_path, "orders.csv")
    assert found["sources"][0]["columns"] == {"interactions": {"bought_at": "timestamp"}}
    assert "Their times are from 2020-09-13 to 2020-09-18." in told


def test_lists_of_one_row_per_user(tmp_path, shop):
    rows = [f"{n}\tU{n}\t11/15/2019 {n}:22:32 AM\tN1 N2\tN{n}-1 N{n + 1}-0\n" for n in range(1, 9)]
    (shop / "behaviors.tsv").write_text("".join(rows))
    _, found, tables = declared(tmp_path, "behaviors.tsv")
    assert found["sources"][0]["columns"]["interactions"]["2"] == "user_id"
    assert tables.counts["users"] == 8


def test_the_scale_is_that_of_all_parts(tmp_path, shop):
    (shop / "r").mkdir()
    for part, ratings in (("a", (4, 3)), ("b", (5, 1))):
        rows = events((f"{part}{n}", n, rating, T) for n, rating in enumerate(ratings))
        (shop / "r" / f"{part}.csv").write_text("user_id,item_id,rating,timestamp\n" + rows)
    told, found, _ = declared(tmp_path, "r")
    assert told.startswith("4 of 4 interactions can be read.")
    assert found["rating_scale"] == [1, 5]


def test_items_without_a_header_beside_interactions_with_one(tmp_path, shop):
    (shop / "m.csv").write_text("1,M1,X\n2,M2,X\n3,M3,X\n4,M4,X\n")
    (shop / "r.csv").write_text(
        "user_id,item_id,rating,timestamp\n" + events((u, i, 3, T) for u in (7, 8) for i in (1, 2))
    )
    _, found, tables = declared(tmp_path, "r.csv", items="m.csv")
    assert "header" not in found["sources"][0]
    assert tables.items.title.tolist() == ["M1", "M2"]
