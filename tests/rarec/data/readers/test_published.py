import gzip
import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest

from rarec.data.raw import read_raw
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

ALL = {"quarantine_limit": 1.0}


def rows(table: pd.DataFrame, *columns: str) -> list[list]:
    return table[list(columns)].to_numpy(dtype=object).tolist()


def copy(source, target, **replaced: bytes):
    """Copy a folder of samples, with some files' content replaced (dots in names written as two underscores)."""
    shutil.copytree(source, target)
    for name, content in replaced.items():
        (target / name.replace("__", ".").replace("_", "-")).write_bytes(content)
    return target


# ---- every published format


def test_ml_1m(specs, samples):
    raw = read_raw(specs["ml-1m"], samples / "ml-1m")
    assert rows(raw.interactions, "user_id", "item_id", "rating", "timestamp")[:2] == [
        [1, 3, 5.0, 978300760],
        [1, 1, 3.0, 978302109],
    ]
    assert raw.interactions.dtypes.astype(str).to_dict() == {
        "user_id": "int64",
        "item_id": "int64",
        "rating": "float32",
        "timestamp": "int64",
    }
    assert rows(raw.items, "item_id", "title", "genres")[1] == [3, "Café Lumière (1989)", "Drama"]
    assert rows(raw.users, "user_id", "gender", "age", "age_group", "occupation", "zip_code") == [
        [1, "F", "1", "under 18", "K-12 student", "48067"],
        [2, "M", "56", "56 or older", "self-employed", "70072"],
        [5, "M", "25", "25-34", "writer", "55117-1234"],
    ]
    assert raw.quarantine.empty


def test_provenance(specs, samples):
    raw = read_raw(specs["ml-1m"], samples / "ml-1m")
    content = (samples / "ml-1m" / "movies.dat").read_bytes()
    assert {
        "role": "items",
        "file": "movies.dat",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": 4,
    } in raw.sources
    assert [source["role"] for source in raw.sources] == ["interactions", "items", "users"]


def test_ml_100k_official_and_recbole_agree(specs, samples):
    official = read_raw(specs["ml-100k"], samples / "ml-100k-official")
    recbole = read_raw(specs["ml-100k"], samples / "ml-100k-recbole")
    pd.testing.assert_frame_equal(official.interactions, recbole.interactions)
    assert official.items.genres.tolist() == ["Animation|Children's|Comedy", "Drama", ""]
    assert recbole.items.genres.tolist() == ["Animation|Children's|Comedy", "Drama", "unknown"]
    assert official.items.title.tolist() == ["Paper Boats (1995)", "Été, L' (1996)", "unknown"]
    assert recbole.items.title.tolist() == ["Paper Boats", "Été, L'", "unknown"]
    columns = ["user_id", "age", "gender", "occupation", "zip_code"]
    pd.testing.assert_frame_equal(official.users[columns], recbole.users[columns])


def test_first_source_whose_files_all_exist_is_read(specs, samples, tmp_path):
    folder = copy(samples / "ml-100k-recbole", tmp_path / "both")
    for file in (samples / "ml-100k-official").iterdir():
        shutil.copy(file, folder)
    assert read_raw(specs["ml-100k"], folder).sources[0]["file"] == "u.data"
    (folder / "u.item").unlink()
    assert read_raw(specs["ml-100k"], folder).sources[0]["file"] == "ml-100k.inter"


def test_movielens_csv(specs, samples):
    raw = read_raw(specs["ml-latest-small"], samples / "ml-latest-small")
    assert rows(raw.interactions, "user_id", "item_id", "rating", "timestamp") == [
        [1, 10, 4.0, 964982703],
        [1, 11, 0.5, 964981247],
        [2, 11, 5.0, 1445714835],
    ]
    assert raw.items.title.tolist() == ["Paper Boats, The (1995)", 'The "Big" Été', "Two Foxes: Redux (2006–2007)"]
    assert raw.users is None


def test_movielens_csv_with_windows_line_ends_and_mark(specs, samples, tmp_path):
    plain = read_raw(specs["ml-latest-small"], samples / "ml-latest-small")
    ratings = (samples / "ml-latest-small" / "ratings.csv").read_bytes().replace(b"\n", b"\r\n")
    folder = copy(samples / "ml-latest-small", tmp_path / "w", ratings__csv=b"\xef\xbb\xbf" + ratings + b"\r\n\r\n")
    raw = read_raw(specs["ml-latest-small"], folder)
    pd.testing.assert_frame_equal(raw.interactions, plain.interactions)
    assert raw.quarantine.empty


def test_bookcrossing(specs, samples):
    raw = read_raw(specs["bookcrossing"].model_copy(update=ALL), samples / "bookcrossing")
    assert raw.interactions.item_id.tolist()[:2] == ["0001111111", "000222222X"]
    assert raw.interactions.rating.tolist() == [0, 5, 10, 7, 8, 4]
    assert "timestamp" not in raw.interactions
    assert rows(raw.items, "item_id", "title", "author", "year", "publisher") == [
        ["0001111111", 'The "Paper" Boat; a story', "A. Nobody", "1999", "Fox &amp; Sons"],
        ["000222222X", 'Ends in a quote"', "B. Someone", "0", "Éditions du Test"],
    ]
    assert raw.items["Image-URL-L"].tolist() == ["http://example.org/l1", "http://example.org/l2"]
    assert rows(raw.users, "user_id", "location", "age")[2] == [9, "genève, , switzerland", "239"]
    assert rows(raw.quarantine, "file", "line", "reason") == [
        ["BX-Books.csv", 4, "6 values instead of 8 when split at ';'"]
    ]


def test_amazon(specs, amazon_folder):
    raw = read_raw(specs["amazon-beauty"], amazon_folder)
    assert rows(raw.interactions, "user_id", "item_id", "rating", "timestamp", "helpful") == [
        ["A1X", "0000000001", 5.0, 1391040000, "[3,4]"],
        ["A1X", "B00000000X", 2.0, 1391040001, "[0,0]"],
        ["A2Y", "0000000001", 3.0, 1391040000, "[0,0]"],
    ]
    # Only products with reviews; the first category path; keys kept, structures as JSON.
    assert rows(raw.items, "item_id", "title", "category", "brand", "related") == [
        ["0000000001", "Soap &amp; Water", "Beauty > Bath & Body > Soap", "Fox's", '{"also_bought":["B1","B2"]}'],
        ["B00000000X", "", "Beauty > Hair Care", "", ""],
    ]


def test_amazon_beauty_recbole_has_an_order_instead_of_a_clock(specs, tmp_path):
    (tmp_path / "amazon-beauty.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t1\t1\n1\t2\t2\n")
    (tmp_path / "amazon-beauty.item").write_text(
        "item_id:token\ttitle:token_seq\tcategories:token_seq\n1\tA\tX > Y\n2\tB\tX\n"
    )
    raw = read_raw(specs["amazon-beauty"], tmp_path)
    assert raw.interactions.order.tolist() == [1, 2]
    assert "timestamp" not in raw.interactions
    assert raw.items.category.tolist() == ["X > Y", "X"]


OWN = {
    "name": "own",
    "title": "Own",
    "domain": "songs",
    "time": "order",
    "sources": [
        {
            "format": "recbole",
            "columns": {
                "interactions": {"step": "order"},
                "items": {"name": "title", "artist": "author", "style": "genres"},
            },
            "genres_separator": ", ",
        }
    ],
}


def test_bring_your_own(samples):
    raw = read_raw(DatasetSpec.model_validate(OWN), samples / "own-recbole")
    assert rows(raw.interactions, "user_id", "item_id", "order") == [
        ["ann", "s1", 2],
        ["ann", "s2", 1],
        ["bob", "s1", 1],
    ]
    np.testing.assert_array_equal(raw.interactions.plays, [3.5, np.nan, 1])
    assert raw.items.genres.tolist() == ["folk|rock", ""]
    assert raw.users is None


def test_ids_have_one_type_across_tables(specs, samples, tmp_path):
    movies = "movieId,title,genres\n10,A (1990),Drama\n11,B (1990),Drama\nx9,C (1990),Drama\n"
    folder = copy(samples / "ml-latest-small", tmp_path / "mixed", movies__csv=movies.encode())
    raw = read_raw(specs["ml-latest-small"], folder)
    assert raw.items.item_id.tolist() == ["10", "11", "x9"]
    assert raw.interactions.item_id.tolist() == ["10", "11", "11"]
    assert raw.interactions.user_id.tolist() == [1, 1, 2]


# ---- bad input


def ml1m(specs, samples, tmp_path, ratings: str | bytes, **fields):
    content = ratings if isinstance(ratings, bytes) else ratings.encode()
    folder = copy(samples / "ml-1m", tmp_path / "bad", ratings__dat=content)
    return read_raw(specs["ml-1m"].model_copy(update=fields), folder)


GOOD = "1::3::5::978300760\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1::3::good::978300760", "rating 'good' is not a number"),
        ("1::3::::978300760", "rating '' is not a number"),
        ("1::3::nan::978300760", "rating 'nan' is not a number"),
        ("1::3::6::978300760", "rating '6' is outside 1 to 5"),
        (
            "1::3::5::soon",
            r"timestamp 'soon' is not a time \(seconds since 1970, from 1990 to a day ahead of now, are expected\)",
        ),
        (
            "1::3::5::978300760000",
            r"timestamp '978300760000' is in the year 32,971 \(seconds since 1970.*`time_unit = \"ms\"`",
        ),
        ("1::3::5::20010101", r"timestamp '20010101' is 1970-08-20 \(seconds since 1970.*`time_unit = \"days\"`"),
        ("1::3::5::978300760000000", r"timestamp '978300760000000' is not a time .*`time_unit = \"us\"`"),
        ("1::3::5::17", r"timestamp '17' is 1970-01-01 .*set `time = \"order\"`"),
        ("nan::3::5::978300760", "user_id 'nan' means nothing"),
        ("1::\\N::5::978300760", r"item_id '\\\\N' means nothing"),
        ("1\0::3::5::978300760", r"user_id '1\\x00' holds a NUL character"),
        ("::3::5::978300760", "user_id is empty"),
        ("1,3,5,978300760", "1 values instead of 4 when split at '::'"),
        ("1::3::5::978300760::1", "5 values instead of 4 when split at '::'"),
    ],
)
def test_bad_row_is_named(specs, samples, tmp_path, line, reason):
    with pytest.raises(
        InputError, match=r"ratings\.dat: 1 of 3 rows cannot be read \(allowed: 1\.00%\)\. line 2: " + reason
    ):
        ml1m(specs, samples, tmp_path, GOOD + line + "\n" + GOOD)


def test_bad_rows_below_the_limit_are_kept_aside(specs, samples, tmp_path):
    lines = [GOOD.replace("1::3", f"1::{i}") for i in range(300)]
    lines[10], lines[250] = "a::b\n", "1::3::x::978300760\n"
    raw = ml1m(specs, samples, tmp_path, "".join(lines))
    assert len(raw.interactions) == 298
    assert raw.quarantine.to_numpy().tolist() == [
        ["ratings.dat", 11, "2 values instead of 4 when split at '::'", "a::b"],
        ["ratings.dat", 251, "rating 'x' is not a number", "1::3::x::978300760"],
    ]


def test_quarantine_above_the_limit_names_the_first_rows(specs, samples, tmp_path):
    with pytest.raises(
        InputError, match=r"4 of 5 rows.*line 2: .*\[a\]; line 3: .*\[b\]; line 4: .*\[c\]; … Correct the file"
    ):
        ml1m(specs, samples, tmp_path, GOOD + "a\nb\nc\nd\n", quarantine_limit=0.5)


def test_wrong_delimiter_with_a_header(specs, samples, tmp_path):
    ratings = (samples / "ml-latest-small" / "ratings.csv").read_bytes().replace(b",", b";")
    folder = copy(samples / "ml-latest-small", tmp_path / "bad", ratings__csv=ratings)
    message = r"ratings\.csv: the first line has no column 'userId'; split at ',', it has 'userId;movieId;"
    with pytest.raises(InputError, match=message):
        read_raw(specs["ml-latest-small"], folder)


def test_missing_column(specs, samples, tmp_path):
    folder = copy(samples / "ml-latest-small", tmp_path / "bad", ratings__csv=b"userId,movieId,timestamp\n1,10,5\n")
    with pytest.raises(
        InputError,
        match=r"ratings\.csv: the first line has no column 'rating'; split at ',', it has 'userId', 'movieId'",
    ):
        read_raw(specs["ml-latest-small"], folder)


def test_wrong_encoding(specs, samples, tmp_path):
    movies = 'movieId,title,genres\n10,A,Drama\n11,"Été",Drama\n'.encode("latin-1")
    folder = copy(samples / "ml-latest-small", tmp_path / "bad", movies__csv=movies)
    with pytest.raises(InputError, match=r"movies\.csv: 1 of 2 rows cannot be read.* line 3: not valid utf-8"):
        read_raw(specs["ml-latest-small"], folder)


def test_utf8_is_read_where_the_format_is_latin_1(specs, samples, tmp_path):
    """GroupLens' later editions are UTF-8; text that is UTF-8 throughout is so by no coincidence."""
    movies = (samples / "ml-1m" / "movies.dat").read_bytes().decode("latin-1").encode("utf-8")
    folder = copy(samples / "ml-1m", tmp_path / "utf8", movies__dat=movies + "99::Ночь (1952)::Drama\n".encode())
    titles = read_raw(specs["ml-1m"], folder).items.title.tolist()
    assert titles[1] == "Café Lumière (1989)"
    assert titles[-1] == "Ночь (1952)"


def test_one_garbled_character_is_no_sign_of_utf8(specs, samples, tmp_path):
    """Ô½ in latin-1 happens to be a character of UTF-8."""
    movies = "1::Ô½ (1990)::Drama\n3::A (1990)::Drama\n".encode("latin-1")
    folder = copy(samples / "ml-1m", tmp_path / "bad", movies__dat=movies)
    assert read_raw(specs["ml-1m"], folder).items.title.tolist() == ["Ô½ (1990)", "A (1990)"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_recognised(specs, samples, tmp_path, encoding):
    plain = read_raw(specs["ml-latest-small"], samples / "ml-latest-small")
    ratings = (samples / "ml-latest-small" / "ratings.csv").read_text().encode(encoding)
    folder = copy(samples / "ml-latest-small", tmp_path / "wide", ratings__csv=ratings)
    pd.testing.assert_frame_equal(read_raw(specs["ml-latest-small"], folder).interactions, plain.interactions)


def test_quote_left_open_costs_one_row(specs, samples, tmp_path):
    movies = b'movieId,title,genres\n10,"Open,Drama\n11,B (1990),Drama\n12,"C (1990)",Drama\n'
    folder = copy(samples / "ml-latest-small", tmp_path / "bad", movies__csv=movies)
    raw = read_raw(specs["ml-latest-small"].model_copy(update=ALL), folder)
    assert raw.items.item_id.tolist() == [11, 12]
    assert raw.quarantine.line.tolist() == [2]
    assert raw.quarantine.reason[0].startswith("quotes do not match")


@pytest.mark.parametrize("content", [b"", b"userId,movieId,rating,timestamp\n"])
def test_empty_file(specs, samples, tmp_path, content):
    folder = copy(samples / "ml-latest-small", tmp_path / "bad", ratings__csv=content)
    with pytest.raises(InputError, match=r"ratings\.csv: the file (is empty|holds no rows); get a complete copy"):
        read_raw(specs["ml-latest-small"], folder)


def test_missing_file(specs, samples, tmp_path):
    folder = copy(samples / "ml-1m", tmp_path / "bad")
    (folder / "movies.dat").unlink()
    with pytest.raises(
        InputError, match=r"ml-1m: its files are not in .*bad; put ratings\.dat, movies\.dat, users\.dat there"
    ):
        read_raw(specs["ml-1m"], folder)


def test_duplicate_id_in_the_catalogue(specs, samples, tmp_path):
    folder = copy(samples / "ml-1m", tmp_path / "bad", movies__dat=b"3::A (1990)::Drama\n3::B (1990)::Drama\n")
    with pytest.raises(InputError, match=r"movies\.dat: item_id 3 is in more than one row \(1 rows repeat an id\)"):
        read_raw(specs["ml-1m"], folder)


def test_an_exact_copy_of_a_row_counts_once(specs, samples, tmp_path):
    users = (samples / "ml-1m" / "users.dat").read_bytes()
    folder = copy(samples / "ml-1m", tmp_path / "twice", users__dat=users + users.splitlines(keepends=True)[1])
    raw = read_raw(specs["ml-1m"], folder)
    assert raw.users.user_id.tolist() == [1, 2, 5]
    assert raw.warnings == ("users.dat: 1 rows are exact copies of earlier ones; each counts once.",)


def test_two_rows_of_one_user_that_differ(specs, samples, tmp_path):
    users = (samples / "ml-1m" / "users.dat").read_bytes()
    folder = copy(samples / "ml-1m", tmp_path / "bad", users__dat=users + b"2::F::25::1::11111\n")
    with pytest.raises(InputError, match=r"users\.dat: user_id 2 is in more than one row \(1 rows repeat an id\)"):
        read_raw(specs["ml-1m"], folder)


@pytest.mark.parametrize("name", ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"])
@pytest.mark.parametrize("damage", [lambda content: content[:-12], lambda content: b"not gzip" + content])
def test_damaged_gzip(specs, amazon_folder, name, damage):
    path = amazon_folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=name.replace(".", r"\.") + r": damaged or incomplete .*; get a complete copy"):
        read_raw(specs["amazon-beauty"], amazon_folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"reviewerID": "A"', "not one object per line"),
        ("[1]", "not one object per line"),
        ('{"reviewerID": "A", "asin": "B", "overall": 5}', "no 'unixReviewTime'"),
        ('{"reviewerID": "A", "asin": "B", "overall": "x", "unixReviewTime": 1}', "rating 'x' is not a number"),
    ],
)
def test_bad_review(specs, amazon_folder, line, reason):
    path = amazon_folder / "reviews_Beauty_5.json.gz"
    path.write_bytes(gzip.compress(line.encode() + b"\n" + gzip.decompress(path.read_bytes())))
    with pytest.raises(InputError, match=f"reviews_Beauty_5.json.gz: 1 of 4 rows cannot be read.* line 1: {reason}"):
        read_raw(specs["amazon-beauty"], amazon_folder)


def test_product_file_is_never_executed(specs, amazon_folder, tmp_path):
    path = amazon_folder / "meta_Beauty.json.gz"
    evil = f"{{'asin': open({str(tmp_path / 'made')!r}, 'w').name}}\n"
    path.write_bytes(gzip.compress(evil.encode() + gzip.decompress(path.read_bytes())))
    raw = read_raw(specs["amazon-beauty"].model_copy(update=ALL), amazon_folder)
    assert raw.quarantine.line.tolist() == [1]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id\titem_id", r"own\.inter: 'user_id' in the first line is not a RecBole column"),
        ("user_id:token,item_id:token", r"own\.inter: 'user_id:token,item_id:token' in the first line"),
        ("user_id:token\tstep:float", r"own\.inter: the first line has no column 'item_id'"),
        ("user_id:token\titem_id:token", r"own\.inter: there is no column 'step'; the file has 'user_id', 'item_id'\."),
    ],
)
def test_bad_recbole_header(samples, tmp_path, header, message):
    folder = copy(samples / "own-recbole", tmp_path / "bad", own__inter=(header + "\n1\t2\n").encode())
    with pytest.raises(InputError, match=message):
        read_raw(DatasetSpec.model_validate(OWN), folder)


def test_recbole_without_the_time_column(tmp_path):
    (tmp_path / "own.inter").write_text("user_id:token\titem_id:token\n1\t1\n")
    spec = DatasetSpec.model_validate(OWN | {"time": "clock", "sources": [{"format": "recbole"}]})
    with pytest.raises(InputError, match=r"own\.inter: there is no time column; map one to `timestamp`, or set time"):
        read_raw(spec, tmp_path)


def test_recbole_time_that_the_data_set_denies(tmp_path):
    (tmp_path / "own.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t1\t1\n")
    spec = DatasetSpec.model_validate(OWN | {"time": "none", "sources": [{"format": "recbole"}]})
    with pytest.raises(InputError, match=r"own\.inter: has a `timestamp` column, but"):
        read_raw(spec, tmp_path)
