"""Installations with everything built: each is made once in a process, and a file of tests gets a copy of its own.

A file says with ``TRACK`` which one its `plant` and `first` are of; without, it is RaSeRec's.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import dagster as dg
import pytest
from launch_here import launch_here
from plant import LENIENT, MISCOUNTED, OWN_FILES, TINY, Plant, failures

from resources.workers.launcher import TrainingLauncher

LAUNCH = TrainingLauncher.launch
OTHERS = {"borrowed": TINY, "miscounted": MISCOUNTED, "own": OWN_FILES, "absent": OWN_FILES, "lenient": LENIENT}


@dataclass(frozen=True)
class Seed:
    """An installation, the run that built all of a track in it, and the worker modules that this run launched."""

    plant: Plant
    first: dg.ExecuteInProcessResult
    launched: tuple[str, ...]


@pytest.fixture(scope="session")
def seeds(tmp_path_factory, _process_group):
    """Gives the `Seed` of a track: the data set ``tiny`` with trainings in this process, made when first asked for."""
    made = {}
    with ExitStack() as stack:

        def seed(track):
            if track not in made:
                plant = Plant(tmp_path_factory.mktemp(track), stack.enter_context(ephemeral()), tiny=TINY)
                with pytest.MonkeyPatch.context() as patch:
                    launched = count_launches(patch, launch_here)
                    first = plant.run(track=track)
                assert first.success, failures(first)
                made[track] = Seed(plant, first, tuple(launched))
            return made[track]

        yield seed


def ephemeral():
    return dg.DagsterInstance.ephemeral()


def count_launches(patch, launch):
    """The worker modules that are launched from now on, in order."""
    modules = []

    def counted(self, context, job, *arguments, **options):
        modules.append(job.module)
        return launch(self, context, job, *arguments, **options)

    patch.setattr(TrainingLauncher, "launch", counted)
    return modules


@pytest.fixture(scope="module")
def seed(request, seeds):
    """The one that this file asks for."""
    return seeds(getattr(request.module, "TRACK", "raserec"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Copies an installation, for this file alone."""
    with ExitStack() as stack:
        yield lambda plant, **datasets: plant.copy(
            tmp_path_factory.mktemp("plant"), stack.enter_context(ephemeral()), **datasets
        )


@pytest.fixture(scope="module")
def trains_here(_process_group):
    """Trainings run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLauncher, "launch", launch_here)
        yield


@pytest.fixture
def real_workers(monkeypatch):
    """Trainings run in processes of their own, as they do outside of tests."""
    monkeypatch.setattr(TrainingLauncher, "launch", LAUNCH)


@pytest.fixture
def launches(monkeypatch):
    """The worker modules that are launched, in order."""
    return count_launches(monkeypatch, TrainingLauncher.launch)


@pytest.fixture(scope="module")
def plant(seed, copies, trains_here):
    """A copy of the seed, and some more data sets."""
    return copies(seed.plant, **OTHERS)


@pytest.fixture(scope="module")
def first(seed):
    """The run that built everything in the seed; its artifacts are in `plant`, too."""
    return seed.first
