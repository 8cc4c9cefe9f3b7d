"""A data set that grows, the model that is in use for it, and the jobs of its track."""

from pathlib import Path

import dagster as dg
import pandas as pd
from declarations import RASEREC, declared
from plant import Plant

from rarec.data.sources.demo import DemoSettings, generate_demo
from resources.mlflow.registry import ModelRegistry

HEAD = """
name = "{name}"
title = "Growing"
domain = "movies"
rating_scale = [1, 5]
label_threshold = 3
short_users = "train-only"

[[sources]]
format = "recbole"
"""
GROWING = declared(
    HEAD,
    RASEREC,
    raserec_pretrained={"epochs": 3},
    raserec_candidate={"tolerance": 0.5, "least_events": 20, "least_users": 1},
    drift_report={"least_events": 20},
)
COLUMNS = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
EVENTS = DemoSettings(users=60, items=100, interactions_per_user=25)


class Growing:
    """The data set ``own`` of an installation.

    Args:
        events: all that will have happened, in order of time; see `demo_events`.
    """

    def __init__(self, plant: Plant, events: pd.DataFrame) -> None:
        self.plant, self.events = plant, events

    def copy(self, plant: Plant) -> "Growing":
        """The same in a copy of the installation."""
        return Growing(plant, self.events)

    def grow(self, share: float, extra: list[tuple] | tuple = ()) -> None:
        """Publish the first share of what happened, and what is made up."""
        folder = self.plant.home.data / "own"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [self.events.iloc[: int(share * len(self.events))], pd.DataFrame(extra, columns=COLUMNS)]
        pd.concat(rows).to_csv(folder / "own.inter", sep="\t", index=False)

    def run(self, job: str, only: tuple[str, ...] | list[str] = (), **config: dict) -> dg.ExecuteInProcessResult:
        """Run a job, or some of its assets."""
        return self.plant.run("own", track=job, only=only, **config)

    def roll_back(self, **config: object) -> dg.ExecuteInProcessResult:
        """Run the job `rollback`."""
        return self.plant.defs.resolve_job_def("rollback").execute_in_process(
            instance=self.plant.instance,
            partition_key="own",
            run_config={"ops": {"roll_back": {"config": config}}},
            raise_on_error=False,
        )

    @property
    def registry(self) -> ModelRegistry:
        """Of the track's models."""
        return self.plant.tracking.registry("raserec", "own")

    def folder(self, asset: str, fingerprint: str) -> Path:
        """Where an artifact lies."""
        return Path(self.plant.home.artifacts, asset, "own", fingerprint)


def demo_events(folder: Path) -> pd.DataFrame:
    """The demo's ratings in order of time."""
    generate_demo(EVENTS, folder)
    table = pd.read_csv(folder / "ratings.dat", sep="::", engine="python", names=COLUMNS)
    return table.sort_values("timestamp:float", kind="stable", ignore_index=True)
