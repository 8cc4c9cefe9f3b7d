"""The form of one role's files: that of the published format, or what the data set declares."""

from collections.abc import Iterable
from dataclasses import replace

from rarec.data.formats.impressions import LISTS
from rarec.data.formats.published import AMAZON_2023, FORMS, KEYS, Form, by_alias
from rarec.data.readers.rows import UNNAMED, Rows
from rarec.data.source_spec import Role, SourceSpec
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError, closest

RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")


def time_column(spec: DatasetSpec, source: SourceSpec) -> str | None:
    """Name of the raw time column: `timestamp` (clock), `order`, or None."""
    return {"clock": "timestamp", "order": "order", "none": None}[source.time or spec.time]


def form_before(source: SourceSpec, role: Role) -> Form:
    """What is known of the files before they are opened."""
    if source.format == "recbole":
        return Form()
    if source.format == "table":
        return Form(records=True)
    return FORMS[source.format][role]


def form_of(rows: Rows, spec: DatasetSpec, source: SourceSpec, role: Role, incoming: bool = False) -> Form:
    """The form of a file that has been read.

    A file that arrived after publication (`incoming`) may call its columns as we do although the published files do
    not, and may have times although the data set has no clock.

    Raises:
        InputError: The file lacks a column that the data set names, or has a time that the data set denies.
    """
    amazon = any(one.format == "amazon-2014" for one in (spec.sources if incoming else (source,)))
    if amazon and "parent_asin" in rows.names:
        form = AMAZON_2023[role]
    elif source.format == "recbole":
        form = _own_form(rows, spec, source, role, {}, incoming)
    elif source.format == "table":
        form = _own_form(rows, spec, source, role, by_alias(role, rows.names), incoming)
    else:
        form = FORMS[source.format][role]
    return replace(form, unit=source.time_unit or form.unit)


def _own_form(
    rows: Rows, spec: DatasetSpec, source: SourceSpec, role: Role, known: dict[str, str], incoming: bool
) -> Form:
    """The form of a file whose columns the data set names, or that are called as ours."""
    names = recbole_names(rows) if source.format == "recbole" else {name: name for name in rows.names}
    own, absent = {}, []
    typed = {plain: name for name, plain in names.items()}
    for name, ours in source.columns.get(role, {}).items():
        if ours in LISTS and "item_id" in names:  # already spread
            continue
        if incoming and name not in names and ours in known.values():
            continue  # a place, but the file names the column
        published = name if name in names else find_column(typed, name, incoming)
        if published is not None:
            own[typed.get(published, published)] = ours
        elif incoming:
            continue
        elif role == "interactions" or ours in KEYS[role]:
            raise InputError(
                f"{rows.file}: there is no column {name!r}{closest(name, names.values())}; the file has "
                f"{', '.join(map(repr, names.values()))}. Correct `columns.{role}` in the data set's file."
            )
        else:
            absent.append(name)
    plain = {full: name for full, name in names.items() if full != name}
    rename = {full: ours for full, ours in (plain | known).items() if ours not in own.values()} | own
    required = KEYS[role]
    time = time_column(spec, source)
    if role == "interactions" and (time == "timestamp" or not incoming):
        there = [rename.get(name, name) for name in rows.names]
        if time == "order" and "order" not in there and "timestamp" in there:
            rename |= {name: "order" for name in rows.names if rename.get(name, name) == "timestamp"}
            there = ["order" if name == "timestamp" else name for name in there]
        if time and time not in there and all(key in there for key in required):
            raise InputError(
                f'{rows.file}: there is no time column; map one to `{time}`, or set time = "none" for the data set. '
                f"The file has {', '.join(map(repr, names.values()))}."
            )
        if not time and "timestamp" in there:
            raise InputError(
                f'{rows.file}: has a `timestamp` column, but the data set says time = "none"; set time = "clock", or '
                "leave the column out."
            )
        required = (*required, *((time,) if time else ()))
    if role == "interactions" and spec.rating_scale and source.format == "table":
        required = (*required, "rating")
    numeric = (
        frozenset(name for name in rows.names if name.endswith(":float")) if source.format == "recbole" else frozenset()
    )
    advice = f"Map columns with `columns.{role}` in the data set's file."
    return Form(rename=rename, required=required, numeric=numeric, advice=advice, absent=tuple(absent))


def find_column(names: Iterable[str], wanted: str, incoming: bool = False) -> str | None:
    """The column that the data set calls by its name, or by its place from 1.

    In an `incoming` file, whose columns may be in another order, only columns without a name are called by their place.
    """
    names = list(names)
    if wanted in names:
        return wanted
    if not wanted.isdecimal() or not 1 <= int(wanted) <= len(names):
        return None
    found = names[int(wanted) - 1]
    return None if incoming and not found.startswith(UNNAMED) else found


def recbole_names(rows: Rows) -> dict[str, str]:
    """Typed name in the first line -> name, in file order.

    Raises:
        InputError: A name has no type.
    """
    names: dict[str, str] = {}
    for field in rows.names:
        name, colon, kind = field.partition(":")
        if not colon or kind not in RECBOLE_TYPES:
            raise InputError(
                f"{rows.file}: {field!r} in the first line is not a RecBole column; expected is tab-separated "
                f"name:type, with one of the types {', '.join(RECBOLE_TYPES)}. For other files use "
                '`format = "table"`.'
            )
        names[field] = name
    return names
