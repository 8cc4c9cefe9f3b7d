"""What a step cannot work with is told in one message, and is not tried again."""

import errno
import shutil

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
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


@pytest.mark.parametrize("ended", [dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED])
def test_a_run_that_was_given_up_builds_nothing_when_it_starts_after_all(ended):
    """Its process has asked for the run, and loads the code while the daemon gives the run up."""
    built = []

    @dg.op
    @refuse_bad_input
    def build(context: dg.OpExecutionContext):
        built.append(context.run_id)

    @dg.job(executor_def=dg.in_process_executor, partitions_def=dg.StaticPartitionsDefinition(["demo"]))
    def work():
        build()

    with dg.DagsterInstance.ephemeral() as instance:
        assert work.execute_in_process(instance=instance, partition_key="demo").success
        run = instance.create_run_for_job(work, tags={"dagster/partition": "demo"})
        {
            dg.DagsterEventType.RUN_FAILURE: instance.report_run_failed,
            dg.DagsterEventType.RUN_CANCELED: instance.report_run_canceled,
        }[ended](run)
        result = execute_run(InMemoryJob(work), run, instance, raise_on_error=False)
    (message,) = (
        event.step_failure_data.user_failure_data.description for event in result.all_events if event.is_step_failure
    )
    assert message.startswith("Dagster had given up this run before the step started, so nothing was built")
    assert len(built) == 1
