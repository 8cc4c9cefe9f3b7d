"""What Dagster's side of a training adds to it: launcher, Pipes, observations, heartbeat, MLflow."""

import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import dagster as dg
import torch

from benchmarks.measure import Column, Figures, clock, timing
from benchmarks.raserec import CPU, PRETRAIN, sizes
from benchmarks.workloads import Setup
from rarec.data.sequences import UserSequences
from rarec.raserec.pretrain import PretrainJob, PretrainObjective
from rarec.training.fit import SUMMARY
from resources.mlflow.tracking import MlflowTracking
from resources.mlflow.training_progress import training_progress
from resources.workers.launcher import TrainingLauncher

EPOCHS = 2  # of a training; what it takes to start and to end stands apart
DATA_SET = "benchmark"


def launched(setup: Setup) -> Figures:
    """What the launcher adds to stage 1.

    Stage 1 as its asset trains it (worker process under the launcher; output and progress followed by a Dagster run,
    observations in SQLite, metrics in MLflow, a checkpoint an epoch), against a bare loop over whole epochs of the same
    batches of the same model with the same fused Adam, in this process. The sides run in turn. The time to start and
    end a training (imports, data, process) is paid once and has a row of its own.
    """
    return {name: _launched(sequences, setup.effort.rounds) for name, sequences in setup.workloads.items()}


def _launched(sequences: UserSequences, rounds: int) -> Column:
    settings = PRETRAIN.model_copy(update={"epochs": EPOCHS})
    bare = PretrainObjective(sequences, settings, CPU)
    optimizer = torch.optim.Adam(bare.model.parameters(), lr=settings.learning_rate, fused=True)

    def bare_epoch(epoch: int) -> None:
        bare.model.train()
        bare.start_epoch(epoch)
        for (batch,), samples in bare.batches(0):
            optimizer.zero_grad()
            loss, _ = bare.model(batch)
            (loss / samples).backward()
            optimizer.step()

    plain, ours, around = [], [], []
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "sequences").mkdir()
        sequences.save(home / "sequences")
        bare_epoch(0)
        for number in range(rounds):
            work = home / f"work-{number}"
            job = PretrainJob(settings=settings, sequences=home / "sequences")
            seconds = clock(partial(_train, home, work, job))
            history = json.loads((work / "checkpoint" / SUMMARY).read_text())["history"]
            ours += [record["train_seconds"] for record in history]
            around.append(seconds - sum(record["train_seconds"] + record["validation_seconds"] for record in history))
            plain += [clock(partial(bare_epoch, number * EPOCHS + epoch + 1)) for epoch in range(EPOCHS)]
    return {
        **sizes(sequences),
        "epochs of a training": EPOCHS,
        "rounds": rounds,
        **timing("epoch under the launcher, s", ours),
        **timing("epoch in a bare loop, s", plain),
        "launcher, Pipes and progress, share of an epoch": median(ours) / median(plain) - 1,
        "start, end and checkpoints of a training, s": median(around),
    }


def _train(home: Path, work: Path, job: PretrainJob) -> None:
    """One launched training in a Dagster run of its own, recorded in MLflow."""
    output = work / "output"
    output.mkdir(parents=True)
    tracking = MlflowTracking(
        tracking_uri=f"sqlite:///{home / 'mlflow.db'}", ui_url="http://127.0.0.1", artifact_root=str(home / "mlflow")
    )
    launcher = TrainingLauncher(device="cpu", threads_per_process=torch.get_num_threads())

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition([DATA_SET]))
    def pretrained(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with tracking.run(context, "pretrained", DATA_SET, work.name, "1", {}) as run:
            launcher.launch(context, job, output, work / "checkpoint", work, training_progress(run))
        return dg.MaterializeResult()

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        dg.materialize([pretrained], instance=instance, partition_key=DATA_SET, run_config=quiet)


BENCHMARKS = {"launched": launched}
