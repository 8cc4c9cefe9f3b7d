"""The table of environment variables in the documentation, generated from the settings' declarations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from rarec.config import type_in_words
from rarec.training.engine_settings import EngineSettings
from resources.settings import ENGINE_VARIABLES, Installation, default_root


@dataclass(frozen=True)
class Variable:
    """One row."""

    name: str
    type: str
    default: str
    description: str


def settings_table() -> list[Variable]:
    """Every environment variable, in the order of declaration. Defaults below RAREC_HOME begin with its name."""
    values: dict[str, Any] = {"root": Path("RAREC_HOME")}
    rows = []
    for name, field in Installation.model_fields.items():
        if name == "engine":
            continue
        values.setdefault(name, field.get_default(call_default_factory=True, validated_data=values))
        default = f"{default_root().name} in the checkout" if name == "root" else _as_text(values[name])
        rows.append(_row(str(field.validation_alias), field, default))
    for name, field in EngineSettings.model_fields.items():
        rows.append(_row(ENGINE_VARIABLES[name], field, _as_text(field.default)))
    return rows


def _row(variable: str, field: FieldInfo, default: str) -> Variable:
    return Variable(variable, type_in_words(field), default, field.description or "")


def _as_text(value: Any) -> str:
    if value in ("", (), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)
