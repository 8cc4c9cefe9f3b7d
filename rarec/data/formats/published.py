"""Published formats as mappings: how the files are written, and what their columns are called here."""

import re
from dataclasses import dataclass, field

from rarec.data.readers.delimited import Dialect
from rarec.data.source_spec import Role

KEYS: dict[Role, tuple[str, ...]] = {
    "interactions": ("user_id", "item_id"),
    "items": ("item_id",),
    "users": ("user_id",),
}
# Our columns, and how others call them; the first that a file has is taken. They are compared without case and without
# what is no letter or digit, so `User-ID`, `userId` and `user_id` are the same.
ALIASES: dict[Role, dict[str, tuple[str, ...]]] = {
    "interactions": {
        "user_id": (
            "user_id", "reviewerID", "user", "uid", "customer_id", "customer", "visitor_id", "visitorid", "member_id",
            "account_id", "reviewer_id", "client_id", "session_id", "username", "user_name", "player_id", "steamid",
        ),
        "item_id": (
            "item_id", "parent_asin", "asin", "movie_id", "ISBN", "business_id", "product_id", "article_id", "book_id",
            "track_id", "song_id", "game_id", "app_id", "anime_id", "video_id", "news_id", "recipe_id", "gmap_id",
            "sku", "goods_id", "item", "product", "movie", "book", "iid", "StockCode", "artist_id",
        ),
        "rating": (
            "rating", "overall", "stars", "Book-Rating", "score", "rate", "review_score", "rating_score", "value",
        ),
        "timestamp": (
            "timestamp", "unixReviewTime", "unix_timestamp", "unix_time", "time", "date", "datetime", "event_time",
            "ts", "created_at", "t_dat", "reviewed_at", "review_date", "date_added", "submitted", "event_timestamp",
            "reviewTime",
        ),
    },
    "items": {
        "title": ("title", "name", "app_name", "Book-Title", "product_title", "item_name", "product_name", "prod_name",
                  "movie_title", "track_name", "book_title", "original_title"),
        "genres": ("genres", "genre"),
        "category": ("category", "categories", "main_category", "main_cat", "department", "product_type_name", "class"),
        "author": ("author", "authors", "Book-Author", "artist", "artist_name", "director", "developer"),
        "publisher": ("publisher", "brand", "store", "manufacturer"),
        "year": ("year", "Year-Of-Publication", "publication_year", "release_year", "year_of_release"),
    },
    "users": {
        "gender": ("gender", "sex"),
        "age": ("age",),
        "age_group": ("age_group", "age_range"),
        "occupation": ("occupation", "job", "profession"),
        "location": ("location", "city", "country", "region"),
        "zip_code": ("zip_code", "zip", "postal_code", "postcode"),
    },
}  # fmt: skip
ALIASES["items"]["item_id"] = (*ALIASES["interactions"]["item_id"], "id")
ALIASES["users"]["user_id"] = (*ALIASES["interactions"]["user_id"], "id")


@dataclass(frozen=True)
class Form:
    """How the files of one role are written.

    Attributes:
        dialects: Possible dialects of delimited files.
        rename: Published column name -> ours.
        required: Our names of columns that must be there.
        positions: Column names of a file that turns out to have no header.
        numeric: Published names of other columns that hold numbers.
        encoding: Encoding, unless the text is UTF-8 throughout.
        records: Whether the files may also hold JSON or Python literals.
        key: Key of the ids in objects.
        first_of_repeated: Whether publishers repeat items, so that the first row of an item counts.
        unit: Unit of times, unless the source says another; see `rarec.data.formats.values.UNIT_WORDS`.
        advice: Ends the error of a missing column.
        absent: Columns that the data set names and the file lacks, though it may.
    """

    dialects: tuple[Dialect, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    numeric: frozenset[str] = frozenset()
    encoding: str = "utf-8"
    records: bool = False
    key: str = ""
    first_of_repeated: bool = False
    unit: str = "s"
    advice: str = (
        "Check the file's delimiter, encoding and header. If it is another file than the format's, declare it with "
        '`format = "table"`; `make dataset FILE=...` writes the declaration.'
    )
    absent: tuple[str, ...] = ()


def same(name: str) -> str:
    """A column name as it is compared with others."""
    return re.sub(r"[^0-9a-z]", "", name.lower()) or name


def by_alias(role: Role, names: tuple[str, ...]) -> dict[str, str]:
    """Published name -> ours, for the columns of a file whose meaning is plain from their names."""
    found: dict[str, str] = {}
    for ours in ALIASES[role]:
        name = next(iter(candidates(role, ours, names)), None)
        if name is not None and name not in found:
            found[name] = ours
    return found


def candidates(role: Role, ours: str, names: tuple[str, ...]) -> list[str]:
    """Columns of a file whose names may mean one of ours, the best first."""
    known = {same(name): name for name in reversed(names)}
    return [known[same(alias)] for alias in ALIASES[role][ours] if same(alias) in known]


CSV = Dialect(",", quote='"')
TSV = Dialect("\t")
RATINGS = ("user_id", "item_id", "rating", "timestamp")
ITEMS_100K = ("item_id", "title", "release_date", "video_release_date", "imdb_url")
# The flags of u.item, in its order.
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
# ml-1m has codes; these are the labels from its README.
OCCUPATIONS = (
    "other or not specified", "academic/educator", "artist", "clerical/admin", "college/grad student",
    "customer service", "doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer",
    "programmer", "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer",
    "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
AGE_GROUPS = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56 or older",
}  # fmt: skip


def _fixed(delimiter: str, *names: str, encoding: str = "utf-8") -> Form:
    return Form((Dialect(delimiter, names, header=False),), encoding=encoding)


_DAT: dict[Role, Form] = {
    "interactions": _fixed("::", *RATINGS, encoding="latin-1"),
    "items": _fixed("::", "item_id", "title", "genres", encoding="latin-1"),
    "users": _fixed("::", "user_id", "gender", "age", "occupation", "zip_code", encoding="latin-1"),
}
_BX = (Dialect(";", quote='"', escape="\\"), CSV)
FORMS: dict[str, dict[Role, Form]] = {
    "movielens-dat": _DAT,
    "synthetic": _DAT,
    "movielens-100k": {
        "interactions": _fixed("\t", *RATINGS),
        "items": _fixed("|", *ITEMS_100K, *GENRES_100K, encoding="latin-1"),
        "users": _fixed("|", "user_id", "age", "gender", "occupation", "zip_code", encoding="latin-1"),
    },
    "movielens-csv": {
        "interactions": Form(
            (CSV,),
            {"userId": "user_id", "movieId": "item_id"},
            RATINGS,
            positions=("userId", "movieId", "rating", "timestamp"),
        ),
        "items": Form((CSV,), {"movieId": "item_id"}, ("item_id", "title", "genres")),
    },
    "bookcrossing-csv": {
        "interactions": Form(
            _BX,
            {"User-ID": "user_id", "ISBN": "item_id", "Book-Rating": "rating", "Rating": "rating"},
            ("user_id", "item_id", "rating"),
            encoding="latin-1",
        ),
        "items": Form(
            _BX,
            {
                "ISBN": "item_id",
                "Book-Title": "title",
                "Title": "title",
                "Book-Author": "author",
                "Author": "author",
                "Year-Of-Publication": "year",
                "Year": "year",
                "Publisher": "publisher",
            },
            ("item_id",),
            encoding="latin-1",
        ),
        "users": Form(
            _BX, {"User-ID": "user_id", "Location": "location", "Age": "age"}, ("user_id",), encoding="latin-1"
        ),
    },
    "amazon-2014": {
        "interactions": Form(
            (CSV,),
            {"reviewerID": "user_id", "asin": "item_id", "overall": "rating", "unixReviewTime": "timestamp"},
            RATINGS,
            positions=("reviewerID", "asin", "overall", "unixReviewTime"),
            records=True,
        ),
        "items": Form((CSV,), {"asin": "item_id"}, ("item_id",), records=True, key="asin", first_of_repeated=True),
    },
}
# Amazon's edition of 2023 names its columns as we do, but for the product, and its times are in milliseconds.
AMAZON_2023: dict[Role, Form] = {
    "interactions": Form((CSV,), {"parent_asin": "item_id"}, RATINGS, records=True, unit="ms"),
    "items": Form((CSV,), {"parent_asin": "item_id"}, ("item_id",), records=True, first_of_repeated=True),
}
