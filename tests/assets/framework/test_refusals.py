"""What a step cannot work with is told in one message, and is not tried again."""

import errno
import shutil

import dagster as dg
import pytest
from plant import failures

import assets.data.raw
from assets.framework.refusals import refuse_bad_input

TRACK = "tables"


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_outside_the_artifact_store_is_told(plant, monkeypatch):
    """The cache of unpacked and generated files is written before an artifact is begun."""
    usage = shutil.disk_usage(plant.home.root)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=4096 if path == plant.home.root else 10**9)
    )
    monkeypatch.setattr(assets.data.raw, "locate_source", full)
    message = failures(plant.run(only=["raw_interactions"]))["raw_interactions"]
    assert message == (
        f"Disk full: 0.0 MB are free in {plant.home.root} (RAREC_HOME). Free some space there, or set RAREC_HOME to a "
        "folder on a larger disk, and run again."
    )


def test_a_full_disk_is_not_tried_again():
    with pytest.raises(dg.Failure, match=r"Disk full: .* \(TMPDIR\)") as caught:
        refuse_bad_input(full)()
    assert caught.value.allow_retries is False


def test_a_failure_of_the_stage_and_other_errors_pass():
    failure = dg.Failure("the training failed: No space left", allow_retries=True)

    def fail():
        raise failure

    with pytest.raises(dg.Failure) as caught:
        refuse_bad_input(fail)()
    assert caught.value is failure

    def break_down():
        raise KeyError("x")

    with pytest.raises(KeyError):
        refuse_bad_input(break_down)()
