import json
import os
import subprocess
import sys

import pytest

from rarec.training import progress as progress_module
from rarec.training.job import WorkerJob
from rarec.training.progress import Progress, ProgressReporter, duration, worker_main


@pytest.fixture
def sent(monkeypatch):
    monkeypatch.delenv("DAGSTER_PIPES_CONTEXT", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    messages = []
    monkeypatch.setattr(progress_module, "_print", messages.append)
    return messages


def test_line_names_what_is_known():
    full = Progress("pretrain", 3, 50, 120, 460, 4.21349, 200.4, {"ndcg_at_10": 0.04125})
    assert full.line() == "pretrain  epoch 3/50  step 120/460  loss 4.2135  ndcg_at_10 0.04125  ETA 3 min 20 s"
    assert Progress("load", step=2).line() == "load  step 2"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7805, "2 h 10 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_reports_are_throttled_unless_forced(sent, clock):
    with ProgressReporter(interval_s=0.5) as reporter:
        for now, force in [(0.0, False), (0.4, False), (0.45, True), (0.9, False), (0.95, False)]:
            clock.now = 100 + now
            reporter.report(stage="s", step=round(100 * now), force=force)
    assert [message.step for message in sent] == [0, 45, 95]


def test_the_soonest_and_the_latest_end_are_told():
    assert Progress("train", eta_s=600.0, soonest_s=60.0).line() == "train  ETA 1 min 00 s to 10 min 00 s"
    assert Progress("train", eta_s=60.0, soonest_s=60.0).line() == "train  ETA 1 min 00 s"


def test_eta_forgets_how_slow_it_was_before_the_last_minute(sent, clock):
    with ProgressReporter() as reporter:
        for step, seconds in ((0, 0), (1, 300), (31, 30), (61, 30), (91, 30)):
            clock.now += seconds
            reporter.report(stage="a", step=step, steps=121, force=True)
    assert [message.eta_s for message in sent[1:]] == [300 * 120, pytest.approx(330 / 31 * 90), 60, 30]


def test_eta_follows_the_pace_of_the_stage(sent, clock):
    with ProgressReporter() as reporter:
        reporter.report(stage="a", step=40, steps=100, force=True)  # resumed: the first 40 steps took no time here
        clock.now += 10
        reporter.report(stage="a", step=60, steps=100, force=True)
        reporter.report(stage="a", step=60, steps=100, eta_s=7.0, force=True)
        reporter.report(stage="b", step=1, steps=10, force=True)
    assert [message.eta_s for message in sent] == [None, 20.0, 7.0, None]


def test_values_become_plain_floats(sent):
    import numpy as np

    with ProgressReporter() as reporter:
        reporter.report(stage="s", loss=np.float32(0.5), hr_at_10=np.float64(0.25))
    assert sent == [Progress("s", loss=0.5, metrics={"hr_at_10": 0.25})]
    assert type(sent[0].loss) is float
    assert type(sent[0].metrics["hr_at_10"]) is float


def test_other_ranks_say_nothing(sent, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("DAGSTER_PIPES_CONTEXT", "not to be opened")
    with ProgressReporter() as reporter:
        reporter.report(stage="s", force=True)
    assert sent == []


WORKER = """
import sys
from rarec.errors import InputError
from rarec.training.job import WorkerJob
from rarec.training.progress import worker_main

class StepJob(WorkerJob):
    step: int
    bad: bool = False
    error: bool = False

def work(job, place, reporter):
    reporter.report(stage="pretrain", step=job.step)
    if job.bad:
        raise InputError("alpha is 2; set it between 0 and 1.")
    if job.error:
        raise RuntimeError("boom")
    assert "dagster" not in sys.modules and "dagster_pipes" not in sys.modules and "torch" not in sys.modules

worker_main(StepJob, work)
"""


def run_worker(tmp_path, job, **environment):
    job_file = tmp_path / "job.json"
    place = {"output": str(tmp_path), "checkpoint": str(tmp_path)}
    job_file.write_text(json.dumps({"job": job, "place": place}))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER_PIPES", "RANK", "RAREC_"))}
    return subprocess.run(
        [sys.executable, "-c", WORKER, str(job_file)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_worker_runs_alone_and_imports_neither_dagster_nor_torch(tmp_path):
    done = run_worker(tmp_path, {"step": 7})
    assert (done.returncode, done.stdout, done.stderr) == (0, "pretrain  step 7\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive-0", "job.json"]
    assert (tmp_path / "alive-0").read_text() == "2 ended"


def test_worker_leaves_its_error_for_the_launcher(tmp_path):
    bad = run_worker(tmp_path, {"step": 1, "bad": True})
    assert bad.returncode == 2
    assert bad.stderr == "InputError: alpha is 2; set it between 0 and 1.\n"
    report = json.loads((tmp_path / "error-0.json").read_text())
    assert (report["input_error"], report["message"]) == (True, "alpha is 2; set it between 0 and 1.")

    broken = run_worker(tmp_path, {"step": 1, "error": True}, RANK="3")
    assert broken.returncode == 1
    assert "RuntimeError: boom" in broken.stderr
    report = json.loads((tmp_path / "error-3.json").read_text())
    assert (report["rank"], report["type"], report["input_error"]) == (3, "RuntimeError", False)
    assert 'raise RuntimeError("boom")' in report["traceback"] or "RuntimeError: boom" in report["traceback"]


def test_worker_whose_launcher_is_gone_ends_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert run_worker(tmp_path, {"step": 1}, RAREC_LAUNCHER_PID=str(gone.pid)).returncode == -9


def test_worker_wants_exactly_one_argument(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["worker"])
    with pytest.raises(SystemExit, match=r"python -m <module> job\.json"):
        worker_main(WorkerJob, lambda job, place, reporter: None)
