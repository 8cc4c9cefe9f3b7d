import json

import pytest
import torch
from places import HELPERS
from raserec_toys import run_on_two_ranks
from rella_ranks_worker import SETTINGS, new_objective, tune_on_ranks
from safetensors.torch import load_file

from rarec.rella.small_llama import load_card
from rarec.text.tokens import by_length


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(HELPERS / "rella_ranks_worker.py", folder)
    return folder


@pytest.mark.usefixtures("single_process")
def test_two_ranks_tune_as_one(two_ranks, tmp_path):
    """Losses, validation figures and the adapter; also where one rank has fewer pieces, or no prompt at all."""
    objective = new_objective()
    objective.start_epoch(0)
    most = SETTINGS.piece_tokens
    pieces = [[len(list(by_length(objective.lengths[s[r::2]], most))) for r in (0, 1)] for s in objective._steps]
    assert pieces[0][0] != pieces[0][1] > 0
    assert pieces[1] == [1, 0]
    tune_on_ranks(tmp_path)
    summaries, others = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, two_ranks))
    one = summaries["0"]
    assert one["history"][-1]["loss"] < one["history"][0]["loss"] - 0.01  # the comparison spans real training
    weights = load_file(tmp_path / "adapter-0" / "adapter_model.safetensors")
    assert list(others) == ["0", "1", "2", "3"]
    for stage, two in others.items():  # of ZeRO
        assert (one["world_size"], two["world_size"]) == (1, 2)
        assert len(one["history"]) == len(two["history"]) == 3
        for single, double in zip(one["history"], two["history"], strict=True):
            assert double["loss"] == pytest.approx(single["loss"], rel=1e-5), stage
            assert double["LogLoss"] == pytest.approx(single["LogLoss"], rel=1e-4), stage
        assert one["best_epoch"] == two["best_epoch"]
        double = load_file(two_ranks / f"adapter-{stage}" / "adapter_model.safetensors")
        assert weights.keys() == double.keys()
        for name, value in weights.items():
            torch.testing.assert_close(double[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("single_process")
def test_two_ranks_train_one_small_llama(two_ranks, tmp_path):
    tune_on_ranks(tmp_path)
    card = load_card(tmp_path / "scratch-0")
    weights = load_file(tmp_path / "scratch-0" / "model.safetensors")
    assert card["loss_by_epoch"][-1] < card["loss_by_epoch"][0] - 0.1  # the comparison spans real training
    for stage in range(4):
        other = load_card(two_ranks / f"scratch-{stage}")
        assert other.pop("loss_by_epoch") == pytest.approx(card["loss_by_epoch"], rel=1e-4), stage
        assert other == {name: value for name, value in card.items() if name != "loss_by_epoch"}
        double = load_file(two_ranks / f"scratch-{stage}" / "model.safetensors")
        assert weights.keys() == double.keys()
        for name, value in weights.items():
            torch.testing.assert_close(double[name], value, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
