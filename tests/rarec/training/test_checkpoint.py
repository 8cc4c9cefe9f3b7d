"""A training that is broken off goes on bit by bit; a checkpoint is whole, and of the same kind of workers."""

import functools

import pytest
import torch
from fit_toys import Interrupted, Noisy, Scripted, run, without_clock
from lone_worker import lone_worker
from safetensors import safe_open

from rarec.errors import InputError
from rarec.training import checkpoint as module
from rarec.training.engine_settings import EngineSettings

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("interrupt_at", [1, 2, 3, 4])
def test_resumed_training_ends_as_if_undisturbed(tmp_path, interrupt_at):
    figures = [0.1, 0.4, 0.3, 0.2, 0.5, 0.1]  # patience 2 stops after the fourth
    straight = Scripted(figures)
    expected, _ = run(straight, tmp_path / "straight")
    broken = Scripted(figures, interrupt_at)
    if interrupt_at < 4:
        with pytest.raises(Interrupted):
            run(broken, tmp_path / "broken")
    else:
        run(broken, tmp_path / "broken")
    resumed = Scripted(figures)
    resumed.model.layer.weight.data.zero_()  # what it starts with must not matter
    summary, _ = run(resumed, tmp_path / "broken")
    assert resumed.started == list(range(interrupt_at, 4))
    assert without_clock(summary) == without_clock(expected)
    for one, other in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(resumed.model.layer.weight, straight.seen[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, _process_group):
    """Gives, for each ZeRO stage, the objective and the summary of a training that nothing broke off."""

    @functools.cache
    def train(stage):
        objective = Noisy()
        with lone_worker():
            engine = EngineSettings(zero_stage=stage)
            return objective, run(objective, tmp_path_factory.mktemp("straight"), epochs=3, engine=engine)[0]

    return train


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("interrupt_before", [(0, 1), (1, 5), (1, 11), (2, 8)])
def test_a_training_goes_on_within_an_epoch_bit_by_bit(undisturbed, tmp_path, stage, interrupt_before):
    engine = EngineSettings(checkpoint_steps=4, zero_stage=stage)
    straight, expected = undisturbed(stage)
    broken = Noisy(interrupt_before)
    with pytest.raises(Interrupted):
        run(broken, tmp_path / "broken", epochs=3, engine=engine)
    resumed = Noisy()
    summary, _ = run(resumed, tmp_path / "broken", epochs=3, engine=engine)
    epoch, step = interrupt_before
    assert resumed.steps[0] == (epoch, step // 4 * 4)
    assert without_clock(summary) == without_clock(expected)
    assert summary["samples"] == expected["samples"] == 3 * 12 * 4
    weights = [dict(objective.model.named_parameters()) for objective in (straight, resumed)]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_a_loss_scale_goes_on_too(tmp_path):
    engine = EngineSettings(precision="fp16", checkpoint_steps=4)
    straight = Noisy()
    summary, _ = run(straight, tmp_path / "straight", epochs=2, engine=engine)
    assert summary["history"][1]["loss"] < summary["history"][0]["loss"]  # it skips steps at first, but not all
    with pytest.raises(Interrupted):
        run(Noisy((1, 9)), tmp_path / "broken", epochs=2, engine=engine)
    resumed = Noisy()
    run(resumed, tmp_path / "broken", epochs=2, engine=engine)
    assert resumed.steps[0] == (1, 8)
    assert torch.equal(resumed.model.layer.weight, straight.model.layer.weight)


def test_more_epochs_continue_a_finished_training(tmp_path):
    run(Scripted([0.1, 0.2, 0.3, 0.4]), tmp_path / "a", epochs=2)
    longer = Scripted([0.1, 0.2, 0.3, 0.4])
    summary, _ = run(longer, tmp_path / "a", epochs=4)
    straight, _ = run(Scripted([0.1, 0.2, 0.3, 0.4]), tmp_path / "b", epochs=4)
    assert longer.started == [2, 3]
    assert without_clock(summary) == without_clock(straight)
    assert summary["seconds"] >= sum(r["train_seconds"] for r in summary["history"])


def test_only_what_is_trained_is_kept(tmp_path):
    """A frozen part, as the model below an adapter, is in no checkpoint and stays as it is."""

    def frozen():
        objective = Scripted([0.1, 0.3, 0.2])
        objective.model.layer.weight.requires_grad_(False)
        return objective

    objective = frozen()
    before = objective.model.layer.weight.clone()
    run(objective, tmp_path, epochs=2)
    assert torch.equal(objective.model.layer.weight, before)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        assert {name for name in file.keys() if "layer.weight" in name} == set()  # noqa: SIM118
        assert {"model.layer.bias", "best.layer.bias"} <= set(file.keys())
    resumed = frozen()
    run(resumed, tmp_path, epochs=3)
    assert resumed.started == [2]
    with pytest.raises(ValueError, match=r"weights of \['layer\.weight'\] are missing"):
        run(Scripted([0.1, 0.3, 0.2]), tmp_path, epochs=3)


def test_a_crash_while_saving_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=1)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full_disk)
        with pytest.raises(
            InputError, match=r"state\.safetensors cannot be written: .*No space left.*; free disk space there"
        ):
            run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=3)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.new"))  # a full disk is not kept full
    resumed = Scripted([0.1, 0.2, 0.3])
    run(resumed, tmp_path, epochs=3)
    assert resumed.started == [1, 2]


def test_a_damaged_checkpoint_is_told_and_training_starts_from_the_beginning(tmp_path, capsys):
    run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=1)
    (tmp_path / "state.safetensors").write_bytes(b"no such format")
    again = Scripted([0.1, 0.2, 0.3])
    run(again, tmp_path, epochs=3)
    assert again.started == [0, 1, 2]
    assert "state.safetensors is damaged" in capsys.readouterr().out


def test_a_checkpoint_of_other_workers_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "world_size", lambda: 2)
        run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=1)
    with pytest.raises(
        InputError, match=r"with 2 on cpu in float32; resuming it with 1 on cpu in float32 would.*start over with force"
    ):
        run(Scripted([0.1, 0.2, 0.3]), tmp_path, epochs=3)
    run(Scripted([0.1, 0.2, 0.3]), tmp_path / "other", epochs=1)
    with pytest.raises(InputError, match=r"with 1 on cpu in float32; resuming it with 1 on cpu in bfloat16"):
        run(Scripted([0.1, 0.2, 0.3]), tmp_path / "other", epochs=3, engine=EngineSettings(precision="bf16"))
    with pytest.raises(InputError, match=r"resuming it with 1 on cpu in float32, accumulation 2 would"):
        run(Scripted([0.1, 0.2, 0.3]), tmp_path / "other", epochs=3, engine=EngineSettings(accumulation=2))
