"""The scripts of the peers in their own environment, which `make peers` builds; without it they are skipped."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

PEERS = ROOT / "benchmarks" / "peers"
PYTHON = Path(os.environ.get("RAREC_PEERS", PEERS / ".venv" / "bin" / "python"))
ITEMS = 12
SMALL = {"n_factors": 8, "dropout_rate": 0.1, "session_max_len": 5, "n_negatives": 4, "batch_size": 8, "lr": 0.01}

pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="there is no environment of the peers")


def python(*command):
    done = subprocess.run([PYTHON, *command], cwd=PEERS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run(folder, script, checkpoint="checkpoint", **job):
    """The folder of what a script has written."""
    output = folder / f"{checkpoint}-output"
    output.mkdir(exist_ok=True)
    (folder / checkpoint).mkdir(exist_ok=True)
    places = {"exchange": str(folder), "output": str(output), "checkpoint": str(folder / checkpoint)}
    (folder / "job.json").write_text(json.dumps({**job, **places}))
    python(script, str(folder / "job.json"))
    return output


@pytest.fixture
def sequences(tmp_path):
    """The last two items of all but two users are held out. Of user 20, no item is trained on; users 21 and 22 are
    trained on whole, and nobody else has the item of user 21's last interaction."""
    rng = np.random.default_rng(0)
    histories = [rng.permutation(ITEMS - 3)[: 4 + user % 4].tolist() for user in range(20)]
    histories += [[ITEMS - 2, ITEMS - 3, 0], [0, 1, ITEMS - 1], [2, 3]]
    lengths = np.array([len(one) for one in histories])
    offsets = np.concatenate([[0], lengths.cumsum()])
    users = np.arange(21)
    ends = offsets[1:].copy()
    ends[users] -= 2
    np.savez(
        tmp_path / "sequences.npz", offsets=offsets, items=np.concatenate(histories), train_ends=ends, users=users
    )  # fmt: skip
    return histories


@pytest.mark.parametrize("model", ["sasrec", "esasrec", "bert4rec"])
def test_lists_and_record(sequences, tmp_path, model):
    shape = {} if model == "bert4rec" else {"n_blocks": 1, "n_heads": 1}
    job = {"model": model, "settings": {**SMALL, **shape, "loss": "sampled_softmax"}, "top_n": 6}
    output = run(tmp_path, "rankings.py", **job, epochs=2, patience=5, seed=1)
    told = json.loads((output / "training.json").read_text())
    assert told["epochs"] == len(told["validation"]) == 2
    assert told["validation"][told["best_epoch"] - 1] == max(told["validation"])
    with np.load(output / "lists.npz") as lists:
        for split, known in (("valid", 2), ("test", 1)):
            masked, unmasked = lists[f"{split}_masked"], lists[f"{split}_unmasked"]
            assert masked.shape == unmasked.shape == (21, 6)
            for user in range(20):
                seen = set(sequences[user][:-known])
                own = [item for item in masked[user].tolist() if item >= 0]
                assert not seen & set(own)
                # Without the items seen before, both lists have the same order.
                kept = [item for item in unmasked[user].tolist() if item not in seen]
                assert own[: len(kept)] == kept
        assert (lists["valid_unmasked"][20] == -1).all()  # nothing is known of this user


def test_an_interrupted_training_ends_as_if_it_had_not_been(sequences, tmp_path):
    shape = {**SMALL, "n_blocks": 1, "n_heads": 1, "loss": "sampled_softmax"}
    job = {"model": "sasrec", "settings": shape, "top_n": 6, "patience": 9, "seed": 1}
    whole = run(tmp_path, "rankings.py", "whole", **job, epochs=4)
    run(tmp_path, "rankings.py", "parts", **job, epochs=2)
    (tmp_path / "parts" / "finished" / "training.json").unlink()  # as if it had been killed after two epochs
    parts = run(tmp_path, "rankings.py", "parts", **job, epochs=4)
    records = [json.loads((folder / "training.json").read_text()) for folder in (whole, parts)]
    assert records[0]["validation"] == records[1]["validation"]
    with np.load(whole / "lists.npz") as one, np.load(parts / "lists.npz") as other:
        assert all((one[name] == other[name]).all() for name in one.files)
    before = (tmp_path / "parts" / "finished" / "training.json").stat().st_mtime_ns
    run(tmp_path, "rankings.py", "parts", **job, epochs=4)
    assert (tmp_path / "parts" / "finished" / "training.json").stat().st_mtime_ns == before


def test_only_evaluated_users_lose_their_last_item_to_validation(sequences, tmp_path):
    """Users 21 and 22 are trained on whole."""
    told = python(
        "-c",
        "import sys, numpy as np; from rankings import interactions, last_is_validation;"
        "given = dict(np.load(sys.argv[1])); ends = given['train_ends'].copy(); ends[given['users']] += 1;"
        "table = interactions(given, ends); mask = last_is_validation(table, given['users']);"
        "print(table[mask].user_id.tolist(), table[~mask].user_id.value_counts()[[21, 22]].tolist())",
        str(tmp_path / "sequences.npz"),
    )
    assert told.strip() == f"{list(range(21))} [3, 2]"


@pytest.mark.parametrize("model", ["dcnv2", "din"])
def test_click_models_read_behaviours_and_not_their_padding(tmp_path, model):
    """Whether the latest behaviour got the best rating decides; rows are padded on the left."""
    rng = np.random.default_rng(0)
    n, most = 700, 5
    there = np.arange(most) >= most - rng.integers(1, most + 1, n)[:, None]
    history = np.where(there, rng.integers(1, ITEMS, (n, most)), 0)
    rating = np.where(there, rng.integers(1, 3, (n, most)), 0)
    label = (rating == 2).sum(1) * 2 > there.sum(1)
    np.savez(
        tmp_path / "samples.npz", names=np.array(["user", "item"]), sizes=np.array([3, ITEMS]),
        fields=np.column_stack([rng.integers(0, 3, n), rng.integers(1, ITEMS, n)]), history=history,
        liked=np.where(rating == 2, history, 0), rating=rating, ratings=3, label=label,
        splits=np.array([0, 500, 600, 700]), shots=np.arange(40),
    )  # fmt: skip
    job = {"model": model, "dim": 8, "learning_rates": [1e-7, 0.01], "weight_decays": [0.0], "batch_size": 32}
    output = run(tmp_path, "predictions.py", rows="all", **job, epochs=8, patience=3, seed=1)
    told = json.loads((output / "training.json").read_text())
    assert told["chosen"] == {"learning_rate": 0.01, "weight_decay": 0.0}
    assert max(told["validation"]) > 0.9
    probability = np.load(output / "probability.npy")
    assert probability.shape == (200,)
    assert probability[100:][label[600:]].mean() > probability[100:][~label[600:]].mean() + 0.3
    shown = python(
        "-c",
        "import sys, json, torch; from predictions import Data, build;"
        "job = json.load(open(sys.argv[1])); data = Data.load(job); torch.manual_seed(0);"
        "model = build(job, data.fields, data.ratings).eval(); rows = torch.arange(9);"
        "of = {name: value[rows] for name, value in data.inputs.items()};"
        "longer = {name: torch.cat([value.new_zeros(9, 3), value], 1) if value.ndim == 2 else value"
        " for name, value in of.items()};"
        "print(float((model(of) - model(longer)).abs().max()))",
        str(tmp_path / "job.json"),
    )
    assert float(shown) < 1e-6
