"""RecBole atomic files: tab-separated, a typed header (`user_id:token`), UTF-8 unless the data set says otherwise.

This is the form for your own data: `.inter` with user_id, item_id and optionally rating and timestamp; `.item` and
`.user` with any columns. The data set's `columns` map your names to ours.
"""

from pathlib import Path

import pandas as pd

from rarec.data.columns import Column, make_column, time_column
from rarec.data.quarantine import Quarantine
from rarec.data.readers.delimited import UTF8_MARK, Layout, read_delimited
from rarec.data.spec import DatasetSpec, Role, SourceSpec
from rarec.errors import InputError

TYPES = ("token", "token_seq", "float", "float_seq")
KEYS: dict[Role, tuple[str, ...]] = {
    "interactions": ("user_id", "item_id"),
    "items": ("item_id",),
    "users": ("user_id",),
}


def read(
    files: dict[Role, Path], spec: DatasetSpec, source: SourceSpec, quarantine: Quarantine
) -> dict[Role, pd.DataFrame]:
    """Tables by role, under our column names."""
    return {role: _read_file(role, path, spec, source, quarantine) for role, path in files.items()}


def _read_file(role: Role, path: Path, spec: DatasetSpec, source: SourceSpec, quarantine: Quarantine) -> pd.DataFrame:
    types = _header(path, source.encoding)
    rename = dict(source.columns.get(role, {}))
    unknown = sorted(set(rename) - set(types))
    if unknown:
        raise InputError(f"{path.name}: the first line has no column {unknown[0]!r}; it has {', '.join(types)}.")
    required = KEYS[role]
    if role == "interactions":
        time = time_column(spec, source)
        if time == "order" and "timestamp" not in rename:
            rename["timestamp"] = "order"
        if time and time not in [rename.get(name, name) for name in types]:
            raise InputError(
                f'{path.name}: there is no time column; map one to `{time}`, or set time = "none" for the data set.'
            )
        if time:
            required = (*required, time)
        elif "timestamp" in types:
            raise InputError(f'{path.name}: has a `timestamp` column, but the data set says time = "none".')
    numeric = {rename.get(name, name) for name, kind in types.items() if kind == "float"}

    def make(name: str) -> Column:
        return make_column(name.split(":")[0], spec, numeric=name.split(":")[0] in numeric)

    layout = Layout("\t", encoding=source.encoding)
    typed = {f"{name}:{kind}": rename.get(name, name) for name, kind in types.items()}
    table = read_delimited(path, layout, typed, required, make, quarantine)
    if role == "items" and "genres" in table and source.genres_separator != "|":
        table["genres"] = table["genres"].str.replace(source.genres_separator, "|", regex=False)
    return table


def _header(path: Path, encoding: str) -> dict[str, str]:
    """Type by published column name, in file order."""
    with path.open("rb") as stream:
        line = stream.readline().removeprefix(UTF8_MARK).decode(encoding, errors="replace").rstrip("\r\n")
    types: dict[str, str] = {}
    for field in line.split("\t"):
        name, colon, kind = field.partition(":")
        if not colon or kind not in TYPES:
            raise InputError(
                f"{path.name}: {field!r} in the first line is not a RecBole column; expected is tab-separated "
                f"name:type, with one of the types {', '.join(TYPES)}."
            )
        types[name] = kind
    return types
