"""The base class of all settings, and settings in words: why they were refused, and what a field may hold."""

import json
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rarec.errors import closest

# What a value must be, by pydantic's error type. Braces are filled from the error's context.
_WANTED = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of names and values",
}


_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "JSON file"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Settings(BaseModel):
    """Frozen settings. Unknown fields are an error, so that no option is silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def require_distinct(name: str, values: Sequence[object]) -> None:
    """For validators: raise ValueError unless the setting lists at least one value, and none of them twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} = {list(values)} must list at least one value, and none of them twice")


def refusals(error: ValidationError, names: Mapping[str, str] | None = None, known: Iterable[str] = ()) -> str:
    """Why settings were refused: each setting, its value, and what it must be.

    Args:
        names: Names of fields where the user sets them, if they differ.
        known: Names that can be set, to list if an unknown one is found.
    """
    return "; ".join(_refusal(dict(fault), names or {}, tuple(known)) for fault in error.errors(include_url=False))


def _refusal(fault: dict[str, Any], names: Mapping[str, str], known: tuple[str, ...]) -> str:
    first, *rest = map(str, fault["loc"] or ("",))
    key = ".".join((names.get(first, first), *rest))
    if fault["type"] == "extra_forbidden":
        known = () if rest else known  # those are the names at the top
        listed = f"; known: {', '.join(known) or 'none'}" if known else ""
        return f"{key}: no such setting{closest(key, known)}{listed}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    wanted = _WANTED.get(fault["type"])
    if wanted is None:
        message = fault["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    given = fault["input"] if isinstance(fault["input"], str) else json.dumps(fault["input"], default=str)
    return f"{key} is {given}; it must be {wanted.format(**fault.get('ctx', {}))}"


def type_in_words(info: FieldInfo) -> str:
    """What a field may hold, for documentation; a text in the field's `Annotated` type names it instead."""
    named = [one for one in info.metadata if isinstance(one, str)]
    return named[0] if named else _in_words(info.annotation, info.metadata)


def _in_words(annotation: Any, metadata: Sequence[Any]) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _in_words(
            inner[0], [*(part for one in inner[1:] for part in getattr(one, "metadata", [one])), *metadata]
        )
    if origin is UnionType:
        return " or ".join(_in_words(one, metadata) for one in inner if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list: {_in_words(inner[0], [])}"
    bounds = [
        f"{word} {getattr(one, bound):g}" for one in metadata for bound, word in _BOUNDS.items() if hasattr(one, bound)
    ]
    return ", ".join([_TYPES.get(origin or annotation, str(annotation)), *bounds])
