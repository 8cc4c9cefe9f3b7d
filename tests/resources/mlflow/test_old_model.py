"""A model that was logged to MLflow before the redesign still answers: as MLflow loads it, and read by today's code."""

import json
import os
import subprocess
import sys
import zipfile

import pandas as pd
import pytest
from places import ROOT, TESTS
from plant import LOADS_ALONE

from rarec.raserec.recommender import Recommender, recommend_histories

ASK = """
request = json.load(sys.stdin)
answer = model.predict(pd.DataFrame({"history": request}), params={"top_n": 5})
print(json.dumps({name: [list(map(float, row)) for row in answer[name]] for name in ("items", "scores")}))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with zipfile.ZipFile(TESTS / "data" / "model-before-redesign.zip") as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def recorded(old):
    return json.loads((old / "answers.json").read_text())


def test_mlflow_loads_it_with_the_code_of_then(old, recorded, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", LOADS_ALONE + ASK, f"sqlite:///{tmp_path}/none.db", str(old), str(ROOT)],
        input=json.dumps(recorded["history"]), cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["items"] == recorded["items"]
    for own, before in zip(answer["scores"], recorded["scores"], strict=True):
        assert own == pytest.approx(before, rel=1e-4)


def test_today_s_code_reads_its_artifacts(old, recorded):
    encoder, bank, module = (old / "artifacts" / name for name in ("encoder", "bank", "module"))
    items = pd.read_parquet(old / "artifacts" / "items" / "items.parquet")["item_id"]
    fingerprint = json.loads((bank / "bank.json").read_text())["encoder"]
    recommender = Recommender.load(encoder, bank, module, fingerprint, len(items))
    histories = [[items[items == item].index[0] for item in history] for history in recorded["history"]]
    lists = recommend_histories(recommender, histories, 5, True)
    assert [items.take(rows).tolist() for rows, _ in lists] == recorded["items"]
    for (_, scores), before in zip(lists, recorded["scores"], strict=True):
        assert scores.tolist() == pytest.approx(before, rel=1e-4)
