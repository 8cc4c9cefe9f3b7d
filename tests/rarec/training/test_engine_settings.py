import pytest
from pydantic import ValidationError

from rarec.training.engine_settings import EngineSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deepspeed": {"optimizer": {"type": "Adam"}}}, "optimizer is set by RaRec; each stage has its own"),
        ({"deepspeed": {"train_batch_size": 8}}, "train_batch_size is set by RaRec; set the stage's batch_size"),
        ({"deepspeed": {"gradient_accumulation_steps": 2}}, "is set by RaRec; set accumulation"),
        ({"deepspeed": {"bf16": {"enabled": True}}}, "bf16 is set by RaRec; set precision"),
        ({"deepspeed": {"zero_optimization": 2}}, "zero_optimization must be a JSON object"),
        (
            {"zero_stage": 1, "deepspeed": {"zero_optimization": {"stage": 2}}},
            "zero_stage is 1, but deepspeed sets stage 2; set only one",
        ),
        (
            {
                "zero_stage": 2,
                "offload": True,
                "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            },
            "offload means to the CPU, but deepspeed's offload_optimizer names another device",
        ),
        ({"offload": True}, "offload needs ZeRO; set zero_stage to 1, 2 or 3"),
        ({"precision": "fp16", "zero_stage": 1}, "fp16 works only with zero_stage 0"),
        ({"zero_stage": 4}, "less than or equal to 3"),
        ({"accumulation": 0}, "greater than or equal to 1"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ValidationError, match=message):
        EngineSettings(**settings)


def test_a_configuration_of_ones_own_is_added_to_ours():
    own = {"zero_optimization": {"stage": 3, "overlap_comm": True}, "wall_clock_breakdown": True}
    settings = EngineSettings(deepspeed=own, offload=True, precision="bf16")
    again = EngineSettings(**settings.model_dump(exclude_unset=True))  # as a job tells a worker
    assert again == settings
    made = again.configuration("cuda", clip=1.0)
    assert made["wall_clock_breakdown"] is True
    assert made["gradient_clipping"] == 1.0
    assert made["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    cpu = {"device": "cpu"}
    assert made["zero_optimization"] == {
        "stage": 3, "overlap_comm": True, "offload_optimizer": cpu, "offload_param": cpu,
    }  # fmt: skip
    assert "reduce_scatter" not in made["zero_optimization"]
    assert EngineSettings(zero_stage=2).configuration("cpu")["zero_optimization"]["reduce_scatter"] is False
    assert own == {"zero_optimization": {"stage": 3, "overlap_comm": True}, "wall_clock_breakdown": True}
