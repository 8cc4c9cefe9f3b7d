"""One process that materialises assets as `make run` does, for tests/drills/test_kill.py: `drill_step.py plan.json`.

The plan holds `assets`, `config` and perhaps `with_upstream`; the last line that it prints is an account in JSON.
Retries wait a moment instead of seconds; all else is the product's own.
"""

import json
import logging
import sys
from pathlib import Path

import dagster as dg

import assets.framework.training

assets.framework.training.RETRIES = dg.RetryPolicy(max_retries=assets.framework.training.RETRIES.max_retries, delay=0.2)

from pipelines.definitions import defs  # noqa: E402 - its assets take the policy when they are defined


def main():
    plan = json.loads(Path(sys.argv[1]).read_text())
    log = logging.getLogger("rarec.progress")
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    selection = dg.AssetSelection.assets(*plan["assets"])
    if plan.get("with_upstream"):
        selection = selection.upstream()
    job = defs.resolve_job_def("everything")
    keys = list(selection.resolve(defs.resolve_asset_graph()))
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(
            instance=instance,
            partition_key="tiny",
            asset_selection=keys,
            run_config={
                "ops": {name: {"config": values} for name, values in plan["config"].items()},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
        failures = [event.step_failure_data for event in result.get_step_failure_events()]
        account = {
            "success": result.success,
            "retries": sum(event.is_step_up_for_retry for event in result.all_events),
            "failures": [
                one.user_failure_data.description if one.user_failure_data else one.error.to_string()
                for one in failures
            ],
            "materialised": {
                event.asset_key.to_user_string(): {
                    "fingerprint": event.materialization.metadata["fingerprint"].value,
                    "reused": event.materialization.metadata["reused"].value,
                    "samples": getattr(event.materialization.metadata.get("samples"), "value", None),
                }
                for event in result.get_asset_materialization_events()
                if "fingerprint" in event.materialization.metadata  # the ledger of new files is no artifact
            },
        }
    print(json.dumps(account), flush=True)
    raise SystemExit(0 if result.success else 1)


if __name__ == "__main__":
    main()
