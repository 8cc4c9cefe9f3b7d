"""A training's progress, in the terminal and in its MLflow run."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

from rarec.training.progress import Progress, progress_log
from resources.mlflow.tracked_run import TrackedRun

TERMINAL_METRICS = (
    "learning_rate",
    "samples_per_s",
    "tokens_per_s",
    "gpu_memory_gib",
    "HR@10",
    "NDCG@10",
    "masked_NDCG@10",
    "AUC",
    "LogLoss",
)
TERMINAL_INTERVAL_S = 5.0
# MLflow gets at most one step in 2 seconds and one in 0.5 % of the time so far: about 1,000 in a day.
STEP_INTERVAL_S = 2.0
STEP_SHARE = 0.005


def training_progress(run: TrackedRun) -> Callable[[Progress], None]:
    """A function that shows progress in the terminal and sends it to MLflow: some steps, and every epoch's figures."""
    started = time.monotonic()
    shown_at = sent_at = -math.inf

    def show(progress: Progress) -> None:
        nonlocal shown_at, sent_at
        now = time.monotonic()
        # Without epochs, only the last step shows the end.
        ended = progress.step is None or (progress.epoch is None and progress.step == progress.steps)
        if ended or now - shown_at >= TERMINAL_INTERVAL_S:
            few = {name: progress.metrics[name] for name in TERMINAL_METRICS if name in progress.metrics}
            progress_log.info("%s", "  " + replace(progress, metrics=few).line())
            shown_at = now
        if progress.epoch is None:
            return
        if progress.step is None:
            run.log_metrics(progress.metrics, step=progress.epoch)
            if progress.loss is not None:
                run.log_metrics({"epoch_loss": progress.loss}, step=progress.epoch)
        elif now - sent_at >= max(STEP_INTERVAL_S, STEP_SHARE * (now - started)):
            figures = {"loss": progress.loss, "eta_s": progress.eta_s, **progress.metrics}
            step = (progress.epoch - 1) * (progress.steps or 0) + progress.step
            run.log_metrics({name: value for name, value in figures.items() if value is not None}, step=step)
            sent_at = now

    return show
