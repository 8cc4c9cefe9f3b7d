"""Book-Crossing as Ziegler distributes it: `;`-separated, quoted, latin-1, quotes escaped by a backslash."""

from pathlib import Path

import pandas as pd

from rarec.data.columns import make_column
from rarec.data.quarantine import Quarantine
from rarec.data.readers.delimited import Layout, read_delimited
from rarec.data.spec import DatasetSpec, Role

LAYOUT = Layout(";", encoding="latin-1", quoted=True, escape="\\")
COLUMNS: dict[Role, dict[str, str]] = {
    "interactions": {"User-ID": "user_id", "ISBN": "item_id", "Book-Rating": "rating"},
    "items": {
        "ISBN": "item_id",
        "Book-Title": "title",
        "Book-Author": "author",
        "Year-Of-Publication": "year",
        "Publisher": "publisher",
    },
    "users": {"User-ID": "user_id", "Location": "location", "Age": "age"},
}


def read(files: dict[Role, Path], spec: DatasetSpec, quarantine: Quarantine) -> dict[Role, pd.DataFrame]:
    """Tables by role. The addresses of the books' images keep their published column names."""
    return {
        role: read_delimited(path, LAYOUT, COLUMNS[role], (), lambda name: make_column(name, spec), quarantine)
        for role, path in files.items()
    }
