"""What report assets share."""

import base64
import io
import json
from types import SimpleNamespace

import pytest
from fake_run import FakeRun
from PIL import Image

from assets.reports.publish import course, image, links_to, log_report
from rarec.reports.page import ReportPaths


def test_a_picture_is_shown_no_larger_than_the_dialog(tmp_path):
    Image.new("RGB", (1800, 600)).save(tmp_path / "plot.png")
    before, _, data = image(tmp_path / "plot.png", "HR@10")[:-1].partition("base64,")
    assert before == "![HR@10](data:image/png;"
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == (900, 300)


def test_a_course_holds_the_asked_figures_and_counts_epochs_from_one(tmp_path):
    history = [
        {"epoch": 1.0, "loss": 3.5, "AUC": 0.5, "ACC": 0.1},
        {"epoch": 2.0, "loss": 3.0, "AUC": 0.75, "ACC": 0.2},
    ]
    (tmp_path / "history.json").write_text(json.dumps({"history": history, "best_epoch": 1}))
    told = course(tmp_path / "history.json", ("AUC",))
    assert told["best_epoch"] == 2
    assert [(one.epoch, one.loss, one.validation) for one in told["epochs"]] == [
        (1, 3.5, {"AUC": 0.5}), (2, 3.0, {"AUC": 0.75})
    ]  # fmt: skip


@pytest.mark.parametrize(("url", "links"), [("http://mlflow/1", ["http://mlflow/1"]), ("", [])])
def test_a_run_without_a_page_is_not_linked(url, links):
    assert [link.url for link in links_to(SimpleNamespace(url=url))] == links


def test_a_reports_files_go_to_its_run(tmp_path):
    run = FakeRun()
    paths = ReportPaths(html=tmp_path / "r.html", json=tmp_path / "r.json", plots={"a": tmp_path / "a.png"})
    log_report(run, paths)
    assert run.files == [(paths.html, ""), (paths.json, ""), (paths.plots["a"], "plots")]
