"""Which of several errors is the cause."""

import dagster as dg
import pytest

from rarec.training.worker.worker_files import leave_ended, leave_error
from resources.workers import failures
from resources.workers.failures import Ending, Errors, failure, full_disk
from resources.workers.log_follower import OutputFollower


def error(folder, rank, kind, message, **details):
    details = {"traceback": "tb", "input_error": False, **details}
    leave_error(folder, rank, message=message, exit_code=1, type=kind, **details)


@pytest.mark.parametrize(
    ("leave", "text"),
    [
        (lambda f: error(f, 2, "ValueError", "x"), "Training worker 2 failed: ValueError: x (exit code 1"),
        (lambda f: leave_ended(f, 1, -9, False), "Training worker 1 was killed by SIGKILL"),
        (lambda f: leave_ended(f, 1, 3, False), "Training worker 1 ended with exit code 3"),
        (lambda f: error(f, 3, "OutOfMemoryError", "CUDA"), "Training worker 3 ran out of memory: OutOfMemoryError"),
        (lambda f: error(f, 1, "InputError", "set it", input_error=True), "set it"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_cause_is_told_from_its_consequences(tmp_path, leave, text, first):
    errors = Errors(tmp_path)
    if first:
        leave(tmp_path)
        errors.look()
    error(tmp_path, 0, "RuntimeError", "[gloo] Connection closed by peer [10.0.0.2]:4711")
    leave_ended(tmp_path, 4, -15, False)  # torchrun ends the ranks beside a failed one
    errors.look()
    if not first:
        leave(tmp_path)
    output = OutputFollower(tmp_path, dg.build_asset_context())
    assert str(failure(Ending(exit_code=1), errors, output, {}, tmp_path).description).startswith(text)


def test_of_equal_errors_the_first_seen_is_the_cause(tmp_path):
    errors = Errors(tmp_path)
    assert not errors.look()
    error(tmp_path, 1, "ValueError", "first")
    assert errors.look()
    error(tmp_path, 0, "ValueError", "second")
    errors.look()
    assert errors.cause()["message"] == "first"


def test_a_full_disk_explains_whatever_a_rank_blames(tmp_path, monkeypatch):
    assert full_disk(tmp_path) == ""
    usage = failures.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: usage._replace(free=100))
    errors = Errors(tmp_path)
    error(tmp_path, 1, "OSError", "cannot write x")
    told = failure(Ending(exit_code=1), errors, OutputFollower(tmp_path, dg.build_asset_context()), {}, tmp_path)
    assert f"the disk of the working folder {tmp_path} is full (100 bytes are left)" in told.description
    assert "worker 1: cannot write x" in told.description
    assert not told.allow_retries
