"""Settings of the sweeps of both tracks."""

from typing import Annotated

from pydantic import Field

from rarec.studies.grid import Grid


class RaserecSweepSettings(Grid):
    """Settings of stage 2 to try. All others are those of the data set's `raserec_finetuned`."""

    memories: tuple[int, ...] = Field(default=(10, 20, 50), description="Values of K.")
    alpha: tuple[float, ...] = Field(default=(0.3, 0.5, 0.7), description="Values of alpha.")
    beta: tuple[float, ...] = Field(default=(1.0,), description="Values of beta.")


class RellaSweepSettings(Grid):
    """Settings of tuning to try. All others are those of the data set's `lora_checkpoint`."""

    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(256, 1024, 8192), description="Numbers of training samples, each with both histories."
    )
    learning_rate: tuple[float, ...] = Field(default=(1e-3,), description="Peak learning rates of Adam.")
    behaviours: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="Values of K, behaviours in a prompt; by default that of `textual_samples`."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the draws and of all tunings.")
