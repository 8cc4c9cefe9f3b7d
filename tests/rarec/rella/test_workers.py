"""The worker entries: everything from artifact folders, as the launcher starts them."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rella_toys import BASE, CPU, toy_data

from rarec.data.ctr import draw
from rarec.rella import predict, tuning
from rarec.rella.predict import Adapter, PredictionSettings, PredictJob
from rarec.rella.scoring import score
from rarec.rella.training_samples import draw_training_samples
from rarec.rella.tuning import TuningJob, TuningSettings, load_adapter
from rarec.training.fit import HISTORY
from rarec.training.job import Place

DATA = toy_data()
REPORTER = SimpleNamespace(report=lambda **_: None)
LABEL = "tuned on mixed, retrieved (seed 5)"


@pytest.mark.usefixtures("single_process")
def test_tuned_by_one_worker_and_asked_by_two(tmp_path, monkeypatch):
    inputs = DATA.prompt_inputs(tmp_path, DATA.model())
    shots, adapter, checkpoint, one, two = (tmp_path / n for n in ("shots", "adapter", "checkpoint", "one", "two"))
    draw_training_samples(DATA.source.samples, 8, "mixed", 5).save(shots)
    for folder in (adapter, one, two):
        folder.mkdir()
    settings = TuningSettings(epochs=2, batch_size=8, learning_rate=0.02)
    job = TuningJob(**inputs, settings=settings, seed=5, training_samples=shots)
    tuning.work(job, Place(output=adapter, checkpoint=checkpoint), REPORTER)
    assert len(json.loads((adapter / HISTORY).read_text())["history"]) == 2

    settings = PredictionSettings(valid_samples=5, test_samples=8, seed=2)
    job = PredictJob(**inputs, settings=settings, adapters=(Adapter(name="mixed-5", folder=adapter),))
    for folder, world in ((one, 1), (two, 2)):
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            predict.work(job, Place(output=folder, checkpoint=folder / "checkpoint"), REPORTER)
    model = load_adapter(DATA.model(), adapter, BASE)
    for split, most in (("valid", 5), ("test", 8)):
        whole = pd.read_parquet(one / f"{split}-0.parquet")
        samples = draw(DATA.source.samples, split, most, 2)
        assert whole["sample"].tolist() == samples.tolist()
        expected, _ = score(model, DATA.prompts, DATA.source.rows(samples, True), DATA.answers, CPU)
        np.testing.assert_allclose(whole[LABEL], expected, atol=2e-6)
        assert np.abs(whole[LABEL] - whole["untuned, retrieved"]).max() > 1e-3
        shares = [pd.read_parquet(two / f"{split}-{rank}.parquet") for rank in (0, 1)]
        assert abs(len(shares[0]) - len(shares[1])) <= 1
        joined = pd.concat(shares).sort_values("sample", ignore_index=True)
        pd.testing.assert_frame_equal(joined, whole, atol=2e-6)
    facts = [json.loads((two / f"facts-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(fact["prompts"] for fact in facts) == 4 * 13 == json.loads((one / "facts-0.json").read_text())["prompts"]
