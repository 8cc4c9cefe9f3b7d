"""Runs of an asset that trains with a function, beside each other."""

from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from fake_run import FakeRun

from assets.framework.refusals import refuse_bad_input
from assets.framework.reuse import Identity, Outcome, materialise
from assets.framework.training import RETRIES, cancellable
from resources.artifacts.store import ArtifactStore
from resources.workspace import Workspace


class Tracking:
    """Stands for MLflow; counts its runs."""

    def __init__(self):
        self.opened = 0

    @contextmanager
    def run(self, *_):
        self.opened += 1
        yield FakeRun(url=f"http://mlflow/{self.opened}")


class Workshop:
    """A store, working folders and MLflow, and runs of an asset `model` that trains with a function."""

    def __init__(self, root: Path):
        self.store = ArtifactStore(root=str(root / "artifacts"), cache=str(root / "cache"))
        self.workspace = Workspace(data="", datasets=str(root / "none"), cache="", work=str(root / "work"), ledgers="")
        self.tracking = Tracking()
        self.logs: list[str] = []

    @property
    def checkpoint(self) -> Path:
        (lock,) = Path(self.workspace.work).glob("model/*/lock")
        return lock.parent / "checkpoint"

    def run(self, train, force=False):
        """``train(folder of the checkpoint)`` makes the artifact's one file; another asset follows it."""

        def build(folder, run):
            (folder / "weights").write_text(train(self.checkpoint))
            return Outcome()

        @dg.asset(
            partitions_def=dg.StaticPartitionsDefinition(["demo"]),
            retry_policy=dg.RetryPolicy(max_retries=RETRIES.max_retries, delay=0.01),
        )
        @cancellable
        @refuse_bad_input
        def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            identity = Identity("model", "demo", "1", {}, {})
            workdir = self.workspace.workdir("model", identity.fingerprint)
            return materialise(context, self.store, self.tracking, identity, build, force=force, workdir=workdir)

        @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo"]))
        def other() -> None:
            pass

        with dg.DagsterInstance.ephemeral() as instance:
            try:
                result = dg.materialize([model, other], partition_key="demo", instance=instance, raise_on_error=False)
            finally:
                for record in instance.get_run_records():
                    self.logs += [entry.user_message for entry in instance.all_logs(record.dagster_run.run_id)]
        return result
