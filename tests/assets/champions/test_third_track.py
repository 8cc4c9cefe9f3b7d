"""A third track is one class and one registration: its candidate is compared, promoted, measured and taken back."""

import dagster as dg
import numpy as np
import pytest
from places import HELPERS
from plant import failed_checks, failures, metadata

from assets.champions import track as tracks
from assets.champions.stages import champion_stages
from assets.champions.track import Compared, Drift, Events
from assets.data.clean import load_table
from assets.framework import stage as framework
from assets.framework.lineage import upstream
from assets.framework.reuse import Outcome
from assets.framework.stage import STAGES, Job, stage
from pipelines.jobs import champion_jobs, rollback_job
from rarec.champions.drift import DriftSettings
from rarec.champions.promotion import Rule
from rarec.config import Settings
from rarec.metrics.significance import compare_paired

TRACK = "tables"


class GuessSettings(Settings):
    """Settings of the model."""

    guess: float = 0.5


class ToyTrack:
    """A model that answers every question with one number; about half of the events are likes."""

    name = "toy"
    artifacts = ("toy_model",)
    kinds = frozenset({"mlflow"})
    has_workers = False
    figure = "closeness"
    promotion = Rule
    drift = DriftSettings
    drift_asset = "toy_drift_report"
    follows = ()
    unit = "events"

    def candidate(self, request, champion):
        return upstream(request.context, request.store, "toy_model")

    def interactions(self, request, candidate):
        return upstream(request.context, request.store, "interactions")["interactions"]

    def kind(self, settings):
        return "trained"

    def events(self, job, candidate, opponent, interactions):
        table = load_table(interactions, "interactions")
        rows = np.arange(len(table))[::2]
        newest = int(table["timestamp"].max())
        window = {
            "what": "every other event",
            "events": len(rows),
            "users": 60,
            "from": 0,
            "to": newest,
            "newest": newest,
        }
        return Events(interactions, table, rows, job.spec.is_positive(table["rating"].to_numpy()[rows]), window)

    def answers(self, job, name, model, events):
        return np.full(len(events.rows), np.load(model["toy_model"].file("guess.npy")))

    def figures(self, model, answers, events, seed):
        return {"closeness": float(self._close(answers, events).mean())}

    def compare(self, champion, candidate, events, seed):
        return Compared(compare_paired(self._close(champion, events), self._close(candidate, events), seed=seed))

    def log_model(self, job, model):
        files = {"weights": model["toy_model"].file("guess.npy")}
        return job.run.log_pyfunc("model", HELPERS / "dummy_pyfunc.py", files, requirements=["numpy"])

    def measure(self, job, champion, table, since):
        return Drift(np.arange(0), {}, "; none is asked for", "none", "nothing happened since")

    def _close(self, answers, events):
        return 1 - (answers - events.label) ** 2


@pytest.fixture(scope="module")
def toys():
    """The stages of the toy; the registries are as before afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework, "STAGES", dict(STAGES))
        kept = dict(tracks.CHAMPION_TRACKS)

        @stage(
            group="baselines", track="raserec", version="1", settings=GuessSettings, after=("interactions",),
            kinds={"numpy"},
        )  # fmt: skip
        def toy_model(job: Job[GuessSettings]) -> Outcome:
            """A number."""
            np.save(job.folder / "guess.npy", job.settings.guess)
            return Outcome()

        stages, check = champion_stages(ToyTrack())
        yield [toy_model, *stages], check
        tracks.CHAMPION_TRACKS.clear()
        tracks.CHAMPION_TRACKS.update(kept)


@pytest.fixture(scope="module")
def run(plant, toys):
    """Runs some of the toy's assets, with the model's guess."""
    assets, check = toys
    partitions = dg.StaticPartitionsDefinition(["tiny"])
    bound = dg.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=partitions), assets)
    defs = dg.Definitions(
        assets=bound, asset_checks=[check], resources=plant.defs.resources, jobs=[rollback_job(partitions)]
    )

    def run(job="__ASSET_JOB", config=None, only=()):
        return defs.resolve_job_def(job).execute_in_process(
            instance=plant.instance, partition_key="tiny", run_config={"ops": config or {}}, raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in only] or None,
        )  # fmt: skip

    return run


PROMOTION = ["toy_model", "toy_candidate", "toy_champion"]


def guess(run, number):
    return run(config={"toy_model": {"config": {"guess": number}}}, only=PROMOTION)


def champion(plant):
    return plant.tracking.registry("toy", "tiny").champion()


def test_the_track_is_promoted_measured_and_taken_back(plant, run):
    first = guess(run, 1.0)
    assert first.success, failures(first)
    assert (champion(plant).number, champion(plant).evidence["decision"]) == (1, "first")

    better = guess(run, 0.5)
    assert better.success, failures(better)
    assert (champion(plant).number, champion(plant).replaced) == (2, 1)
    assert champion(plant).evidence["decision"] == "better"

    worse = guess(run, 0.0)
    assert not worse.success
    assert set(failed_checks(worse)) == {("toy_candidate", "not_worse")}
    assert champion(plant).number == 2

    drift = run(only=["toy_drift_report"])
    assert drift.success, failures(drift)
    told = metadata(drift)["toy_drift_report"]
    assert (told["verdict"], told["reason"], told["champion"]) == ("none", "nothing happened since", 2)

    back = run("rollback", {"roll_back": {"config": {"track": "toy"}}})
    assert back.success, failures(back)
    assert champion(plant).number == 1


def test_it_has_jobs_like_the_others(toys):
    jobs = champion_jobs()
    assert {"drift", "promote", "drift_rella", "promote_rella", "drift_toy", "promote_toy"} == set(jobs)
    assert "toy" in jobs["promote_toy"][0]


def test_a_track_is_registered_once(toys):
    with pytest.raises(ValueError, match="track toy is registered twice"):
        champion_stages(ToyTrack())
