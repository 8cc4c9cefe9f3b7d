"""Run configuration generated from settings classes, and the effective values of settings."""

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import dagster as dg
from pydantic import Field, ValidationError, create_model

from rarec.config import Settings, refusals
from rarec.data.spec import DatasetSpec
from rarec.errors import InputError

S = TypeVar("S", bound=Settings)


class EventConfig(dg.Config):
    """Run configuration of a stage that keeps no artifact."""


class StageConfig(EventConfig):
    """Run configuration of a stage that makes an artifact."""

    force: bool = Field(default=False, description="Build again even if an artifact of the same identity exists.")


class InForce(NamedTuple):
    """A setting in force, and what set it: the default, the data set or the run."""

    setting: str
    value: Any
    source: Literal["default", "data set", "run"]


def run_configuration(name: str, settings: type[Settings], base: type[EventConfig]) -> type[EventConfig]:
    """The run configuration of the asset ``name``: ``base`` and every field of ``settings``, all optional."""
    fields: dict[str, Any] = {
        field: (_dagster_type(info.annotation) | None, Field(default=None, description=_describe(info)))
        for field, info in settings.model_fields.items()
    }
    title = "".join(part.capitalize() for part in name.split("_")) + "Config"
    return create_model(title, __base__=base, __module__=__name__, __doc__=f"Run configuration of `{name}`.", **fields)


def resolve(settings: type[S], config: EventConfig, spec: DatasetSpec, stage: str, defaults_of: str = "") -> S:
    """Settings from, in order of precedence, the run's configuration, the data set's defaults, the fields' defaults.

    ``defaults_of`` names another stage whose defaults in the data set's file apply here too.
    """
    given = {name: value for name, value in config.model_dump(exclude={"force"}).items() if value is not None}
    return settle(settings, given, spec, stage, defaults_of)


def settle(settings: type[S], given: Mapping[str, Any], spec: DatasetSpec, stage: str, defaults_of: str = "") -> S:
    """Settings from the ``given`` values, the data set's defaults and the fields' defaults; see `resolve`."""
    values = with_defaults(given, spec.overrides, stage, defaults_of)
    return make_settings(settings, values, f"settings of {stage} for {spec.name}")


def in_force(settings: Settings, spec: DatasetSpec, stage: str, defaults_of: str = "") -> list[InForce]:
    """The settings that `resolve` has made, each with what set it.

    A run that gives a setting the value that it has anyway, as the launchpad's text does, has not set it.
    """
    of_data_set = with_defaults({}, spec.overrides, stage, defaults_of)
    before = settle(type(settings), {}, spec, stage, defaults_of).model_dump(mode="json")
    return [
        InForce(name, value, "run" if value != before[name] else "data set" if name in of_data_set else "default")
        for name, value in settings.model_dump(mode="json").items()
    ]


def with_defaults(
    given: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]], stage: str, defaults_of: str = ""
) -> dict[str, Any]:
    """Given values before a data set's defaults for the stage, before its defaults for the stage ``defaults_of``."""
    return {**overrides.get(defaults_of, {}), **overrides.get(stage, {}), **given}


def make_settings(settings: type[S], values: Mapping[str, Any], where: str, also: tuple[str, ...] = ()) -> S:
    """The settings with these values. Raises InputError with ``where``, each refused value and the reason.

    ``also`` names other settings that are valid in the same place, for the message.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        raise InputError(f"{where}: {refusals(error, known=(*settings.model_fields, *also))}") from error


def _dagster_type(annotation: Any) -> Any:
    """Dagster's configuration knows no optional Literal and no tuple: values are checked when the settings are made."""
    if typing.get_origin(annotation) is types.UnionType:  # of one type and None, which every field may be
        return _dagster_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        return list[_dagster_type(typing.get_args(annotation)[0])]  # type: ignore[misc]
    if typing.get_origin(annotation) is Literal:
        return type(typing.get_args(annotation)[0])
    return annotation


def _describe(info: Any) -> str:
    text = f"{info.description or ''} Default: {info.default!r} unless the data set sets its own."
    annotation = info.annotation
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        text += f" One of: {', '.join(map(repr, typing.get_args(annotation)))}."
    return text.strip()
