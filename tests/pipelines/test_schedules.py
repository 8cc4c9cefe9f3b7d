"""Schedules: weekly, off until somebody turns them on, one run a data set."""

import dagster as dg
import pytest
from installations import OWN, installation

from pipelines.definitions import build_defs
from pipelines.jobs import TRACK_JOBS
from rarec.errors import InputError
from resources.settings import Installation


def test_schedules_are_weekly_and_off_and_ask_for_each_data_set_once(tmp_path):
    home = installation(tmp_path, OWN).model_copy(update={"scheduled": ("demo", "own")})
    defs = build_defs(home)
    schedules = defs.schedules
    assert {schedule.name: schedule.job_name for schedule in schedules} == {
        f"rarec_{job}_weekly": job for job in (*TRACK_JOBS, "drift", "drift_rella")
    }
    for schedule in schedules:
        assert (schedule.cron_schedule, schedule.default_status) == ("0 3 * * 1", dg.DefaultScheduleStatus.STOPPED)
        with dg.build_schedule_context(repository_def=defs.get_repository_def()) as context:
            asked = schedule.evaluate_tick(context).run_requests
        assert [(one.run_key, one.partition_key) for one in asked] == [("demo", "demo"), ("own", "own")]


def test_a_data_set_whose_file_is_wrong_stops_no_schedule(tmp_path):
    """Its run fails with the reason, which is notified."""
    home = installation(tmp_path, "name =").model_copy(update={"scheduled": ("demo", "own")})
    defs = build_defs(home)
    with dg.build_schedule_context(repository_def=defs.get_repository_def()) as context:
        asked = defs.schedules[0].evaluate_tick(context).run_requests
    assert [one.partition_key for one in asked] == ["demo", "own"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RAREC_SCHEDULED", "demo, none", "RAREC_SCHEDULED: Unknown data set 'none'"),
        ("RAREC_SCHEDULE", "weekly", "RAREC_SCHEDULE is 'weekly'; set it to a cron expression such as 0 3 "),
    ],
)
def test_wrong_schedules_are_refused_when_they_are_loaded(tmp_path, variable, value, message):
    with pytest.raises(InputError, match=message):
        build_defs(Installation.from_environment({"RAREC_HOME": str(tmp_path), variable: value}))
