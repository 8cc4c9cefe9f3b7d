"""Models of other libraries through Dagster Pipes. The script of the peers is replaced by one that knows the answer."""

import sys
from pathlib import Path

import numpy as np
import pytest
from plant import failures, metadata

from assets.baselines.ranking import rankings_in
from assets.peers import process
from rarec.data.sequences import UserSequences
from rarec.reports.ranking.report import RankingReport
from resources.workspace import Workspace

# Puts the target of odd users second, and knows nothing of the others.
STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    job = json.loads(Path(sys.argv[1]).read_text())
    pipes.log.info(f"training {job['model']}")
    given = np.load(Path(job["exchange"]) / "sequences.npz")
    users = given["users"]
    lists = {}
    for place, split in enumerate(("valid", "test")):
        best = np.full((len(users), job["top_n"]), -1)
        target = given["items"][given["train_ends"][users] + place]
        best[:, 1] = np.where(np.arange(len(users)) % 2, target, -1)
        lists |= {f"{split}_unmasked": best, f"{split}_masked": best[:, 1:]}
    np.savez(Path(job["output"]) / "lists.npz", **lists)
    figures = [0.1, job["settings"]["dropout_rate"]]
    record = {"epochs": 2, "best_epoch": 2, "seconds": 3.0, "peak_memory_mib": 100.0, "validation": figures}
    if job["settings"]["dropout_rate"] < 0.3:
        lists = {name: np.full_like(best, -1) for name, best in lists.items()}
        np.savez(Path(job["output"]) / "lists.npz", **lists)
    (Path(job["output"]) / "training.json").write_text(json.dumps(record))
"""


PEERS = {"models": ["sasrec", "esasrec"], "dropouts": [0.2, 0.5], "seed": 1}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "rankings.py").write_text(STAND_IN)
    (tmp_path / "requirements.txt").write_text("rectools==1")
    monkeypatch.setattr(process, "SCRIPTS", tmp_path)
    monkeypatch.setattr(Workspace, "peers_python", property(lambda _: Path(sys.executable)))


def test_without_the_environment_it_says_how_to_get_it(plant, first, monkeypatch, tmp_path):
    monkeypatch.setattr(Workspace, "peers_python", property(lambda _: tmp_path / "none"))
    result = plant.run(track="peers")
    message = failures(result)["peer_rankings"]
    assert "there is no environment of the peers" in message
    assert "build it with `make peers`" in message


def test_peers_are_judged_by_our_metrics_and_stand_beside_ours(plant, first, stand_in):
    result = plant.run(track="peers", peer_rankings=PEERS)
    assert result.success, failures(result)
    artifact = plant.artifact(result, "peer_rankings")
    sequences = UserSequences.load(plant.artifact(first, "user_sequences").path)
    odd = np.arange(len(sequences.evaluated_users())) % 2
    for split in ("valid", "test"):
        kept = rankings_in(artifact, split)
        assert list(kept) == ["RecTools SASRec", "RecTools eSASRec"]
        assert kept["RecTools eSASRec"].rank.tolist() == np.where(odd, 2, sequences.n_items).tolist()
        assert kept["RecTools eSASRec"].rank_masked.tolist() == np.where(odd, 1, sequences.n_items).tolist()
    assert metadata(result)["peer_rankings"]["test RecTools SASRec masked HR@10"] == pytest.approx(odd.mean())
    assert not artifact.path.joinpath("exchange").exists()
    report = RankingReport.model_validate_json(plant.artifact(result, "peer_metrics").file("report.json").read_text())
    assert {"transitions", "pre-trained", "fine-tuned", "RecTools SASRec", "RecTools eSASRec"} <= set(report.models)
    efforts = {one.model: one for one in report.efforts}
    assert (efforts["RecTools SASRec"].epochs, efforts["RecTools SASRec"].seconds) == (2, 3.0)
    assert efforts["fine-tuned"].peak_memory_mib > 0
    assert {(c.baseline, c.candidate) for c in report.comparisons} == {
        ("RecTools SASRec", "fine-tuned"), ("RecTools eSASRec", "fine-tuned"),
    }  # fmt: skip
    ours = RankingReport.model_validate_json(plant.artifact(result, "ranking_metrics").file("report.json").read_text())
    before = {(s.model, s.split, s.protocol): s.metrics["HR@10"] for s in ours.scores}
    now = {(s.model, s.split, s.protocol): s.metrics["HR@10"] for s in report.scores}
    assert {key: now[key] for key in before} == pytest.approx(before)
    again = plant.run(track="peers", peer_rankings=PEERS)
    assert metadata(again)["peer_rankings"]["reused"]
    (process.SCRIPTS / "requirements.txt").write_text("rectools==2")
    assert not metadata(plant.run(track="peers", peer_rankings=PEERS))["peer_rankings"].get("reused")
