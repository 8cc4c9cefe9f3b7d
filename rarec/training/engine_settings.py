"""How DeepSpeed holds and computes a training: precision, ZeRO, offload, pieces, checkpoints."""

import copy
from typing import Any, Literal

from pydantic import Field, model_validator

from rarec.config import Settings

Precision = Literal["fp32", "bf16", "fp16"]

_OWNED = {
    "train_batch_size": "a stage's batch_size decides",
    "train_micro_batch_size_per_gpu": "a stage's batch_size decides",
    "gradient_accumulation_steps": "set accumulation",
    "optimizer": "each stage brings its own",
    "scheduler": "set the stage's learning_rate and schedule",
    "gradient_clipping": "each stage brings its own",
    "bf16": "set precision",
    "fp16": "set precision",
    "torch_autocast": "set precision",
    "amp": "set precision",
    "steps_per_print": "RaRec reports progress itself",
}
_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


class EngineSettings(Settings):
    """The result depends on ``precision``, and where there is dropout on ``accumulation``, whose pieces draw masks of
    their own, as ranks do; everything else changes it by rounding at most.
    """

    precision: Precision = Field(
        default="fp32",
        description="Arithmetic of the forward and backward pass; weights and optimizer stay in float32. fp16 scales "
        "the loss.",
    )
    zero_stage: int = Field(
        default=0,
        ge=0,
        le=3,
        description="DeepSpeed ZeRO: what the processes share out: nothing (0), optimizer states (1), gradients too "
        "(2), weights too (3).",
    )
    offload: bool = Field(
        default=False, description="Keep optimizer states (and in ZeRO-3 weights) in the CPU's memory."
    )
    accumulation: int = Field(
        default=1, ge=1, description="Pieces, computed one after the other, into which a process's part of a step goes."
    )
    deepspeed: dict[str, Any] = Field(
        default={}, description="Further settings in DeepSpeed's own format, which are added to RaRec's."
    )
    checkpoint_steps: int = Field(
        default=0, ge=0, description="Steps between checkpoints within an epoch; 0: only by time and after epochs."
    )
    checkpoint_minutes: float = Field(
        default=10, ge=0, description="Minutes between checkpoints within an epoch; 0: only by steps and after epochs."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EngineSettings":
        for name, instead in _OWNED.items():
            if name in self.deepspeed:
                raise ValueError(f"deepspeed: {name} is RaRec's own: {instead}")
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("deepspeed: zero_optimization must be a JSON object")
        if "zero_stage" in self.model_fields_set and zero.get("stage", self.zero_stage) != self.zero_stage:
            raise ValueError(f"zero_stage is {self.zero_stage}, but deepspeed says stage {zero['stage']}: keep one")
        for name in ("offload_optimizer", "offload_param"):
            if self.offload and zero.get(name, {}).get("device", "cpu") != "cpu":
                raise ValueError(f"offload is to the CPU, but deepspeed's {name} says otherwise: keep one")
        if self.offload and self.stage == 0:
            raise ValueError("offload needs ZeRO: set zero_stage to 1, 2 or 3")
        if self.precision == "fp16" and self.stage:
            raise ValueError(
                "fp16 works with zero_stage 0 only: with shared-out gradients DeepSpeed lets each process decide alone "
                "whether a step overflowed; use bf16"
            )
        return self

    @property
    def stage(self) -> int:
        """The ZeRO stage, wherever it was set."""
        stage: int = self.deepspeed.get("zero_optimization", {}).get("stage", self.zero_stage)
        return stage

    def configuration(self, device: str, clip: float = 0.0) -> dict[str, Any]:
        """DeepSpeed's configuration for a training on ``device`` (cpu or cuda), clipped to gradient norm ``clip``."""
        zero: dict[str, Any] = {"stage": self.stage}
        if device == "cpu" and self.stage:
            zero["reduce_scatter"] = False  # gloo has none
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
            if self.stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        given = copy.deepcopy(self.deepspeed)
        configuration: dict[str, Any] = {
            # Batches are cut by the stages, so that they do not depend on the number of processes.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip,  # without it DeepSpeed would clip to a norm of 1
            "steps_per_print": 2**31,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # it would have to be compiled
            "timers": {"throughput": {"enabled": False}},  # it makes the CPU wait for the GPU twice a step
            **given,
            "zero_optimization": {**zero, **given.get("zero_optimization", {})},
        }
        if self.precision in _AUTOCAST:
            configuration["torch_autocast"] = {"enabled": True, "dtype": _AUTOCAST[self.precision]}
        return configuration
