"""Group `peers`: click models of other libraries on our samples, and the report that sets them beside ours."""

import json
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from assets.baselines.ctr import Probabilities, first_shots
from assets.data.clean import load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.peers.process import COSTS, require_peers, run_peer
from assets.rella.text import labels
from assets.reports.ctr import PEERS, REPORTED, write_report
from rarec.baselines.click_models import CLICK_MODELS
from rarec.baselines.click_training import CLICKS, ClickJob, ClickSettings, save_clicks
from rarec.baselines.ctr import ALL_SAMPLES, SAME_SHOTS
from rarec.baselines.peer_predictions import CTR_PEERS, PROBABILITY, PeerPredictionSettings, save_samples
from rarec.baselines.peers import TRAINING
from rarec.data.ctr import CtrSamples
from rarec.reports.ctr.inputs import CtrReportSettings
from rarec.types import IntArray

SAMPLES = ("interactions", "item_catalog", "user_profiles", "ctr_samples", "mixed_reit_samples")
_Given = tuple[CtrSamples, IntArray, npt.NDArray[np.bool_], pd.DataFrame, pd.DataFrame, IntArray]


def _given(job: Job[Any]) -> _Given:
    """Samples, items and likes of all interactions, catalogue, users, and the adapters' shots."""
    table = load_table(job.inputs["interactions"], "interactions", ("item_index", "rating"))
    return (
        CtrSamples.load(job.path("ctr_samples")),
        table["item_index"].to_numpy().astype(np.int64),
        np.asarray(job.spec.is_positive(table["rating"].to_numpy())),
        load_table(job.inputs["item_catalog"], "items"),
        load_table(job.inputs["user_profiles"], "users"),
        first_shots(job.path("mixed_reit_samples"))[1],
    )


def _amounts(given: _Given) -> list[tuple[str, str]]:
    """What models are fitted on, and how their names say it: all samples, and the shots if these are fewer."""
    samples, *_, shots = given
    both = [("all", ALL_SAMPLES), ("shots", SAME_SHOTS)]
    return both[:1] if len(shots) == samples.rows("train").stop else both


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=PeerPredictionSettings,
    inputs=SAMPLES,
    kinds={"pytorch"},
    computes=True,
    prepare=require_peers,
    extras=labels,
)
def peer_predictions(job: Job[PeerPredictionSettings]) -> Outcome:
    """torch-rechub's DCNv2 and DIN on all training samples and on the adapters' shots, in their own environment.

    Validation chooses learning rate, weight decay and epoch. Our metrics judge the probabilities.
    """
    exchange = job.folder / "exchange"
    exchange.mkdir()
    given = _given(job)
    save_samples(*given, job.settings.behaviours, exchange)
    found = Probabilities(given[0])
    costs = []
    for model in job.settings.models:
        for which, amount in _amounts(given):
            name, output = f"{CTR_PEERS[model]}, {amount}", job.folder / f"{model}-{which}"
            run_peer(job, "predictions.py", job.settings.job(model, which, exchange, output), output)
            found.add(name, np.load(output / PROBABILITY))
            costs.append({"model": name, **json.loads((output / TRAINING).read_text())})
    (job.folder / COSTS).write_text(json.dumps(costs))
    shutil.rmtree(exchange)
    return found.outcome(job.folder)


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=ClickSettings,
    inputs=SAMPLES,
    kinds={"pytorch", "deepspeed"},
    trains=True,
    extras=labels,
)
def click_predictions(job: Job[ClickSettings]) -> Outcome:
    """SIM and SASRec for clicks, which no maintained library has, on all training samples and on the shots."""
    given = _given(job)
    file = job.folder / CLICKS
    save_clicks(*given, job.settings.behaviours, file)
    found = Probabilities(given[0])
    efforts: dict[str, float] = {}
    for model in job.settings.models:
        for which, amount in _amounts(given):
            name, folder = f"{CLICK_MODELS[model]}, {amount}", f"{model}-{which}"
            work = ClickJob(settings=job.settings, model=model, rows=which, clicks=file)
            told = job.train_one(folder, {"model": model, "rows": which, **job.settings.model_dump()}, work, ("AUC",))
            found.add(name, np.load(job.folder / folder / PROBABILITY))
            efforts |= {f"{name}: seconds": told.values["seconds"]}
    file.unlink()
    outcome = found.outcome(job.folder)
    outcome.values |= efforts
    return outcome


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=CtrReportSettings,
    inputs=(*REPORTED, *PEERS),
    kinds={"json", "html"},
)
def peer_ctr_metrics(job: Job[CtrReportSettings]) -> Outcome:
    """ReLLa, the simple methods and the peers in one report."""
    return write_report(job)
