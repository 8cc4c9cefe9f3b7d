"""Installations with everything built: each is made once in a process, and tests get copies of their own.

A file says with ``TRACK`` which track its `plant` and `first` are of: without, RaSeRec's; "tables" stops before any
training. `promoted` and `refreshed` are installations with a champion.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import dagster as dg
import pytest
from declarations import LENIENT, MISCOUNTED, OWN_FILES, TINY
from growing import GROWING, Growing, demo_events
from launch_here import launch_here
from plant import Plant, failures

from resources.workers.launcher import TrainingLauncher

LAUNCH = TrainingLauncher.launch
TABLES = ("raw_interactions", "interactions", "item_catalog", "user_profiles")
NOW = 956_700_001  # after all that happened
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
                    first = plant.run(only=TABLES) if track == "tables" else plant.run(track=track)
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
def real_workers(trains_here):
    """While it lasts, trainings run in processes of their own, as they do outside of tests; gives their modules."""

    @contextmanager
    def block():
        with pytest.MonkeyPatch.context() as patch:
            yield count_launches(patch, LAUNCH)

    return block


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


@dataclass(frozen=True)
class State:
    """A growing data set, and the runs that brought it here, by job."""

    own: Growing
    runs: dict[str, dg.ExecuteInProcessResult]


@pytest.fixture(scope="session")
def states(tmp_path_factory, _process_group):
    """Gives a state by its name, made when first asked for.

    ``promoted``: the first champion, on three quarters of the data. ``refreshed``: after new events, with them in its
    memory, as version 2.
    """
    made = {}
    with ExitStack() as stack:

        def place():
            return tmp_path_factory.mktemp("own"), stack.enter_context(ephemeral())

        def promoted():
            own = Growing(Plant(*place(), own=GROWING), demo_events(tmp_path_factory.mktemp("demo")))
            own.grow(0.75)
            runs = {job: own.run(job) for job in ("drift", "raserec", "promote")}
            assert runs["promote"].success, failures(runs["raserec"]) | failures(runs["promote"])
            return State(own, runs)

        def refreshed():
            before = state("promoted").own
            own = before.copy(before.plant.copy(*place()))
            own.grow(0.85, extra=[("1", "2", 4.0, NOW)])  # one of them late
            measured = own.run("drift", drift_report={"finetune_drop": 5, "pretrain_drop": 5})
            result = own.run("refresh", raserec_candidate={"source": "refreshed", "tolerance": 1.0})
            assert result.success, failures(measured) | failures(result)
            return State(own, {"drift": measured, "refresh": result})

        def state(name):
            if name not in made:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(TrainingLauncher, "launch", launch_here)
                    made[name] = {"promoted": promoted, "refreshed": refreshed}[name]()
            return made[name]

        yield state


@pytest.fixture(scope="module")
def runs(states):
    """State -> job -> the run that brought it there."""
    return lambda name: states(name).runs


@pytest.fixture
def promoted(states, copies, trains_here):
    """A growing data set with a first champion, for this test alone."""
    own = states("promoted").own
    return own.copy(copies(own.plant))


@pytest.fixture
def refreshed(states, copies, trains_here):
    """A growing data set with a refreshed champion, for this test alone."""
    own = states("refreshed").own
    return own.copy(copies(own.plant))
