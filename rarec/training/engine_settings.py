"""Settings of the training engine: precision, ZeRO, offload, accumulation, checkpoints."""

import copy
from typing import Any, Literal

from pydantic import Field, model_validator

from rarec.config import Settings

Precision = Literal["fp32", "bf16", "fp16"]

_OWNED = {
    "train_batch_size": "set the stage's batch_size",
    "train_micro_batch_size_per_gpu": "set the stage's batch_size",
    "gradient_accumulation_steps": "set accumulation",
    "optimizer": "each stage has its own",
    "scheduler": "set the stage's learning_rate and schedule",
    "gradient_clipping": "each stage has its own",
    "bf16": "set precision",
    "fp16": "set precision",
    "torch_autocast": "set precision",
    "amp": "set precision",
    "steps_per_print": "RaRec reports progress itself",
}
_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


class EngineSettings(Settings):
    """How DeepSpeed trains.

    Only ``precision`` changes the result, and ``accumulation`` if there is dropout: like ranks, pieces draw their own
    masks. Everything else changes it by rounding at most.
    """

    precision: Precision = Field(
        default="fp32",
        description="Precision of the forward and backward pass; weights and optimizer states stay in float32. fp16 "
        "uses loss scaling.",
    )
    zero_stage: int = Field(
        default=0,
        ge=0,
        le=3,
        description="DeepSpeed ZeRO stage: what is sharded over the processes. 0: nothing; 1: optimizer states; 2: "
        "gradients too; 3: weights too.",
    )
    offload: bool = Field(default=False, description="Keep optimizer states (with ZeRO-3 weights too) in CPU memory.")
    accumulation: int = Field(
        default=1, ge=1, description="Pieces into which a process cuts its part of a step, to compute them in turn."
    )
    deepspeed: dict[str, Any] = Field(default={}, description="Further settings in DeepSpeed's own format.")
    checkpoint_steps: int = Field(
        default=0, ge=0, description="Steps between checkpoints within an epoch; 0 means by time only."
    )
    checkpoint_minutes: float = Field(
        default=10, ge=0, description="Minutes between checkpoints within an epoch; 0 means by steps only."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EngineSettings":
        for name, instead in _OWNED.items():
            if name in self.deepspeed:
                raise ValueError(f"deepspeed: {name} is set by RaRec; {instead}")
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("deepspeed: zero_optimization must be a JSON object")
        if "zero_stage" in self.model_fields_set and zero.get("stage", self.zero_stage) != self.zero_stage:
            raise ValueError(f"zero_stage is {self.zero_stage}, but deepspeed sets stage {zero['stage']}; set only one")
        for name in ("offload_optimizer", "offload_param"):
            if self.offload and zero.get(name, {}).get("device", "cpu") != "cpu":
                raise ValueError(f"offload means to the CPU, but deepspeed's {name} names another device; set only one")
        if self.offload and self.stage == 0:
            raise ValueError("offload needs ZeRO; set zero_stage to 1, 2 or 3")
        if self.precision == "fp16" and self.stage:
            raise ValueError(
                "fp16 works only with zero_stage 0: with sharded gradients, each process decides alone "
                "whether a step overflowed; use bf16 instead"
            )
        return self

    @property
    def stage(self) -> int:
        """The ZeRO stage, from whichever of both settings."""
        stage: int = self.deepspeed.get("zero_optimization", {}).get("stage", self.zero_stage)
        return stage

    def configuration(self, device: str, clip: float = 0.0) -> dict[str, Any]:
        """DeepSpeed's configuration for training on ``device`` (cpu or cuda) with gradient norm at most ``clip``."""
        zero: dict[str, Any] = {"stage": self.stage}
        if device == "cpu" and self.stage:
            zero["reduce_scatter"] = False  # gloo lacks it
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
            if self.stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        given = copy.deepcopy(self.deepspeed)
        configuration: dict[str, Any] = {
            # Stages cut the batches themselves, so they do not depend on the number of processes.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip,  # DeepSpeed's default is a norm of 1
            "steps_per_print": 2**31,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # needs a compiler
            "timers": {"throughput": {"enabled": False}},  # makes the CPU wait for the GPU twice a step
            **given,
            "zero_optimization": {**zero, **given.get("zero_optimization", {})},
        }
        if self.precision in _AUTOCAST:
            configuration["torch_autocast"] = {"enabled": True, "dtype": _AUTOCAST[self.precision]}
        return configuration
