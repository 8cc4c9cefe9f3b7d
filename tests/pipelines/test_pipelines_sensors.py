"""Failed runs are told, whatever becomes of the telling."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from pipelines.sensors import notify_failure
from resources.home import RarecHome


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["demo"]))
def broken():
    raise dg.Failure("the row 7 of x.csv has no item", allow_retries=False)


@pytest.fixture
def failed():
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.Definitions(assets=[broken], jobs=[dg.define_asset_job("daily", [broken])]).resolve_job_def("daily")
        yield instance, job.execute_in_process(instance=instance, partition_key="demo", raise_on_error=False)


def tell(failed, tmp_path, address):
    instance, result = failed
    home = RarecHome.from_environment({"RAREC_HOME": str(tmp_path), "RAREC_WEBHOOK": address, "DAGSTER_PORT": "3333"})
    assert "secret" not in repr(home)
    context = dg.build_run_status_sensor_context(
        sensor_name="notify_failure",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    notify_failure(home)(context)


def test_a_webhook_gets_what_failed_and_where(failed, tmp_path):
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tell(failed, tmp_path, f"http://127.0.0.1:{server.server_port}/secret")
    finally:
        server.shutdown()
    (payload,) = got
    run_id = failed[1].run_id
    assert payload == {
        "run": run_id,
        "job": "daily",
        "data_set": "demo",
        "steps": ["broken"],
        "error": "the row 7 of x.csv has no item",
        "url": f"http://127.0.0.1:3333/runs/{run_id}",
    }


def test_a_webhook_that_is_away_fails_nothing(failed, tmp_path):
    tell(failed, tmp_path, "http://127.0.0.1:9/secret")
