"""Base class of every settings object: immutable, and strict about names."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen settings; an unknown field is an error, so that no option is silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")
