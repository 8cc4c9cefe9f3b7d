"""Group `peers`: click models of other libraries on our samples, and the report that sets them beside ours."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from assets.baselines.ctr import Probabilities, first_shots
from assets.data.clean import load_table
from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.peers.process import require_peers, run_peer, versions_of
from assets.rella.text import labels
from assets.reports.ctr import PEERS, REPORTED, write_report
from assets.reports.publish import effort, save_efforts
from rarec.baselines.click_models import CLICK_MODELS
from rarec.baselines.click_training import CLICKS, ClickJob, ClickSearchSettings, save_clicks
from rarec.baselines.ctr import ALL_SAMPLES, SAME_SHOTS
from rarec.baselines.peer_predictions import (
    CTR_PEERS,
    PROBABILITY,
    ClickData,
    PeerPredictionSettings,
    save_samples,
)
from rarec.baselines.peers import TRAINING
from rarec.data.ctr import CtrSamples
from rarec.reports.ctr.inputs import CtrReportSettings
from rarec.reports.records import Effort
from rarec.training.fit import HISTORY

SAMPLES = ("interactions", "item_catalog", "user_profiles", "ctr_samples", "mixed_reit_samples")
SCRIPT = "predictions.py"
M = TypeVar("M", bound=str)


def _given(job: Job[Any]) -> ClickData:
    table = load_table(job.inputs["interactions"], "interactions", ("item_index", "rating"))
    rating = table["rating"].to_numpy()
    return ClickData(
        samples=CtrSamples.load(job.path("ctr_samples")),
        items=table["item_index"].to_numpy().astype(np.int64),
        rating=rating,
        liked=np.asarray(job.spec.is_positive(rating)),
        catalogue=load_table(job.inputs["item_catalog"], "items"),
        users=load_table(job.inputs["user_profiles"], "users"),
        shots=first_shots(job.path("mixed_reit_samples"))[1],
    )


def _fits(models: Mapping[M, str], asked: Iterable[M], data: ClickData) -> Iterator[tuple[M, str, str]]:
    """Each model that is asked for, what it is fitted on, and its name in tables.

    That is all samples, and the shots if these are fewer.
    """
    amounts = {"all": ALL_SAMPLES, "shots": SAME_SHOTS}
    if len(data.shots) == data.samples.rows("train").stop:
        del amounts["shots"]
    for model in asked:
        for rows, amount in amounts.items():
            yield model, rows, f"{models[model]}, {amount}"


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=PeerPredictionSettings,
    shown=("models", "epochs"),
    inputs=SAMPLES,
    kinds={"pytorch"},
    trains=True,
    precision=False,
    prepare=require_peers,
    extras=lambda request: {**labels(request), **versions_of(SCRIPT)},
)
def peer_predictions(job: Job[PeerPredictionSettings]) -> Outcome:
    """torch-rechub's DCNv2 and DIN on all training samples and on the adapters' shots, in their own environment.

    Validation chooses learning rate, weight decay and epoch. Our metrics judge the probabilities.
    """
    exchange = job.folder / "exchange"
    exchange.mkdir()
    data = _given(job)
    save_samples(data, job.settings.behaviours, exchange)
    found = Probabilities(data.samples)
    efforts, chosen = [], {}
    for model, rows, name in _fits(CTR_PEERS, job.settings.models, data):
        given = {**job.settings.job(model, rows), "exchange": str(exchange)}
        output = run_peer(job, SCRIPT, given, f"{model}-{rows}")
        found.add(name, np.load(output / PROBABILITY))
        told = json.loads((output / TRAINING).read_text())
        chosen[f"{name}: chosen"] = json.dumps(told.pop("chosen"))
        efforts.append(Effort(model=name, **told))
    save_efforts(efforts, job.folder)
    shutil.rmtree(exchange)
    return found.outcome(job.folder, chosen)


@stage(
    group="peers",
    track="rella",
    version="1",
    settings=ClickSearchSettings,
    shown=("models", "epochs"),
    inputs=SAMPLES,
    kinds={"pytorch", "deepspeed"},
    trains=True,
    extras=labels,
)
def click_predictions(job: Job[ClickSearchSettings]) -> Outcome:
    """SIM and SASRec for clicks, which no maintained library has, on all training samples and on the shots.

    Validation chooses learning rate, dropout and epoch.
    """
    data = _given(job)
    file = job.folder / CLICKS
    save_clicks(data, job.settings.behaviours, file)
    found = Probabilities(data.samples)
    efforts, chosen = [], {}
    for model, rows, name in _fits(CLICK_MODELS, job.settings.models, data):
        tried = {}
        for settings in job.settings.trials():
            folder = f"{model}-{rows}-{settings.learning_rate:g}-{settings.dropout:g}"
            work = ClickJob(settings=settings, model=model, rows=rows, clicks=file)
            told = job.train_one(folder, {"model": model, "rows": rows, **settings.model_dump()}, work, ("AUC",))
            tried[folder] = told.values
        best = max(tried, key=lambda folder: tried[folder]["validation AUC"])
        found.add(name, np.load(job.folder / best / PROBABILITY))
        efforts.append(effort(name, tried[best], job.folder / best / HISTORY, "AUC"))
        chosen[f"{name}: chosen"] = best
    file.unlink()
    save_efforts(efforts, job.folder)
    return found.outcome(job.folder, chosen)


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
