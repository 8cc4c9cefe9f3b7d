"""MovieLens as GroupLens distributes it: ml-1m (`::`), ml-100k (tab and `|`), ml-25m and ml-latest-small (CSV)."""

from pathlib import Path

import numpy as np
import pandas as pd

from rarec.data.columns import make_column
from rarec.data.quarantine import Quarantine
from rarec.data.readers.delimited import Layout, read_delimited
from rarec.data.spec import DatasetSpec, Role

# ml-1m has codes; these are the labels from its README.
OCCUPATIONS = (
    "other or not specified",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
AGE_GROUPS = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}

# The flags of u.item, in its order.
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)

RATINGS = ("user_id", "item_id", "rating", "timestamp")
CSV_NAMES = {"userId": "user_id", "movieId": "item_id"}


def _read(
    path: Path,
    layout: Layout,
    required: tuple[str, ...],
    spec: DatasetSpec,
    quarantine: Quarantine,
    rename: dict[str, str] | None = None,
) -> pd.DataFrame:
    return read_delimited(path, layout, rename or {}, required, lambda name: make_column(name, spec), quarantine)


def read_dat(files: dict[Role, Path], spec: DatasetSpec, quarantine: Quarantine) -> dict[Role, pd.DataFrame]:
    """ml-1m. `occupation` becomes the published label, and `age_group` the label of the age code."""
    names: dict[Role, tuple[str, ...]] = {
        "interactions": RATINGS,
        "items": ("item_id", "title", "genres"),
        "users": ("user_id", "gender", "age", "occupation", "zip_code"),
    }
    tables = {
        role: _read(path, Layout("::", names[role], "latin-1"), (), spec, quarantine) for role, path in files.items()
    }
    if "users" in tables:
        users = tables["users"]
        labels = {str(code): label for code, label in enumerate(OCCUPATIONS)}
        users["occupation"] = users["occupation"].map(labels).fillna(users["occupation"]).astype("str")
        users["age_group"] = users["age"].map(AGE_GROUPS).astype("str")
    return tables


def read_100k(files: dict[Role, Path], spec: DatasetSpec, quarantine: Quarantine) -> dict[Role, pd.DataFrame]:
    """ml-100k. The genre flags become one `genres` column, without "unknown"."""
    items = ("item_id", "title", "release_date", "video_release_date", "imdb_url", *GENRES_100K)
    layouts: dict[Role, Layout] = {
        "interactions": Layout("\t", RATINGS),
        "items": Layout("|", items, "latin-1"),
        "users": Layout("|", ("user_id", "age", "gender", "occupation", "zip_code"), "latin-1"),
    }
    tables = {role: _read(path, layouts[role], (), spec, quarantine) for role, path in files.items()}
    if "items" in tables:
        table = tables["items"]
        flags = (table[list(GENRES_100K[1:])] == "1").to_numpy()
        labels = np.array(GENRES_100K[1:])
        table = table.drop(columns=list(GENRES_100K))
        tables["items"] = table.assign(genres=pd.Series(["|".join(labels[row]) for row in flags], dtype="str"))
    return tables


def read_csv(files: dict[Role, Path], spec: DatasetSpec, quarantine: Quarantine) -> dict[Role, pd.DataFrame]:
    """ml-25m and ml-latest-small."""
    required: dict[Role, tuple[str, ...]] = {"interactions": RATINGS, "items": ("item_id", "title", "genres")}
    tables = {}
    for role, path in files.items():
        rename = {published: name for published, name in CSV_NAMES.items() if name in required[role]}
        tables[role] = _read(path, Layout(",", quoted=True), required[role], spec, quarantine, rename)
    return tables
