import json

import pytest
import torch
from places import HELPERS
from raserec_ranks_worker import STAGE1, both_stages
from raserec_toys import chain_sequences, run_on_two_ranks
from safetensors.torch import load_file

from rarec.raserec.pretrain import PretrainObjective


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(HELPERS / "raserec_ranks_worker.py", folder)
    return folder


@pytest.mark.usefixtures("single_process")
def test_two_ranks_train_as_one(two_ranks, tmp_path):
    """Losses, validation figures and weights of both stages; sums run in another order, hence the tolerance."""
    both_stages(tmp_path)
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, two_ranks))
    objective = PretrainObjective(chain_sequences(users=25, n_items=20), STAGE1, torch.device("cpu"))
    objective.start_epoch(0)
    # Some steps consist of one window, which leaves rank 1 without work.
    assert any(len(step) == 1 for step in objective._steps)
    assert {"sasrec", "gru4rec", "bert4rec", "sasrec-zero3", "stage2", "stage2-zero1", "stage2-in-pieces"} <= two.keys()
    for run, summary in two.items():
        stage = run.split("-")[0]
        assert (one[stage]["world_size"], summary["world_size"]) == (1, 2)
        assert [entry["rank"] for entry in summary["ranks"]] == [0, 1]
        assert summary["samples"] == one[stage]["samples"]
        assert len(one[stage]["history"]) == len(summary["history"]) == 3
        for single, double in zip(one[stage]["history"], summary["history"], strict=True):
            for name in {"loss", "recommendation_loss", "contrastive_loss"} & single.keys():
                assert double[name] == pytest.approx(single[name], rel=1e-5), (run, name)
            assert double["NDCG@10"] == pytest.approx(single["NDCG@10"], abs=0.01)
        first, last = (one[stage]["history"][epoch]["loss"] for epoch in (0, -1))
        assert last < first - 0.01  # the comparison spans real training
        file = "module.safetensors" if stage == "stage2" else "encoder.safetensors"
        weights, double = (load_file(folder / file) for folder in (tmp_path / stage, two_ranks / run))
        assert double.keys() == weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(
                double[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key, r=run: f"{r} {k}: {m}"
            )
