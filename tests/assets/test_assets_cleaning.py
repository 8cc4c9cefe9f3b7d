"""Cleaning up beside other runs."""

import dagster as dg
import pytest

from assets.cleaning import clean_up
from resources.artifacts import ArtifactStore
from resources.folders import Folders
from resources.tracking import MlflowTracking


@dg.job
def clean():
    clean_up()


@dg.job
def slow():
    pass


def test_cleaning_up_names_the_runs_that_it_waits_for(tmp_path):
    resources = {
        "store": ArtifactStore(root=str(tmp_path), cache=str(tmp_path)),
        "tracking": MlflowTracking(tracking_uri="http://127.0.0.1:9", ui_url="", artifact_root=""),
        "folders": Folders(data="", datasets="", cache="", work="", ledgers=""),
    }
    config = {"ops": {"clean_up": {"config": {"dry_run": False}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        other, _ = (
            instance.create_run_for_job(slow, status=dg.DagsterRunStatus[status]) for status in ("STARTED", "SUCCESS")
        )
        with pytest.raises(dg.Failure, match=rf"whose process is gone: {other.run_id} \(slow\)$"):
            clean.execute_in_process(instance=instance, resources=resources, run_config=config)
