"""Runs side by side: what differs, what is best, courses and pictures."""

import io
import json
import math

import pytest
from PIL import Image

from rarec.reports.run_comparison import (
    ComparedRun,
    Curve,
    Pictures,
    compare_runs,
    comparison_tables,
    write_comparison,
)


def run(number, params=None, metrics=None, inputs=None, curves=None):
    return ComparedRun(
        run_id=f"{number}" * 32, name=f"raserec_finetuned demo {number}", asset="raserec_finetuned", dataset="demo",
        status="FINISHED", started="2026-11-23 03:00 UTC", seconds=12.5, fingerprint="f" * 32,
        params={"seed": "42", "dim": "8", **(params or {})}, metrics=metrics or {}, inputs=inputs or {"bank": "b" * 32},
        curves=curves or {}, url=f"http://127.0.0.1:5000/#/experiments/1/runs/{number}",
    )  # fmt: skip


def tables(*runs):
    return {table.section: table for table in comparison_tables(compare_runs(runs))}


def test_settings_that_differ_stand_apart_from_those_in_common():
    found = tables(run(1, {"alpha": "0.5"}), run(2, {"alpha": "0.7", "beta": "1"}), run(3, {"alpha": "0.5"}))
    assert found["differ"].header == ("Setting", "A", "B", "C")
    assert found["differ"].rows == (("alpha", "0.5", "0.7", "0.5"), ("beta", "–", "1", "–"))
    assert found["same"].rows == (("dim", "8"), ("seed", "42"))


def test_the_best_figure_is_marked_where_it_is_known_which_is_best():
    found = tables(
        run(1, metrics={"best_NDCG_at_10": 0.25, "loss": 0.5, "best_epoch": 3.0, "peak_memory_mib": 9.0}),
        run(2, metrics={"best_NDCG_at_10": 0.5, "loss": 0.75, "best_epoch": 5.0, "peak_memory_mib": 9.0, "AUC": 0.6}),
    )
    assert found["figures"].header == ("Figure", "A", "B", "B - A")
    assert found["figures"].rows == (
        ("AUC", "–", "0.6", "–"),  # alone it is no best
        ("best_NDCG_at_10", "0.25", "0.5 *", "+0.25"),
        ("best_epoch", "3", "5", "+2"),
        ("loss", "0.5 *", "0.75", "+0.25"),
        ("peak_memory_mib", "9", "9", "+0"),
    )


def test_inputs_tell_whether_runs_can_be_compared():
    same, other = run(1), run(2, inputs={"bank": "c" * 32, "encoder": "e" * 32})
    assert tables(same, run(3))["inputs"].rows == (("bank", "b" * 12, "b" * 12, "same"),)
    assert tables(same, other)["inputs"].rows == (
        ("bank", "b" * 12, "c" * 12, "differs"),
        ("encoder", "–", "e" * 12, "not read by all"),
    )
    assert compare_runs([same, run(3)]).data_version == "the same for all"
    assert compare_runs([same, other]).data_version == "not the same for all"
    more = run(4, inputs={"bank": "b" * 32, "items": "i" * 32})
    assert compare_runs([same, more]).data_version == "the same for all"  # as far as both read it
    assert compare_runs([same, run(5, inputs={"items": "i" * 32})]).data_version == "no input in common"


def test_inputs_that_nobody_recorded_are_not_called_the_same():
    of_old = [run(number).model_copy(update={"inputs": {}}) for number in (1, 2)]
    assert compare_runs(of_old).data_version == "not recorded"
    assert tables(*of_old)["inputs"].rows == ()


def test_another_code_version_counts_as_a_setting_that_differs():
    old, new = (run(number).model_copy(update={"code_version": version}) for number, version in ((1, "2"), (2, "3")))
    assert tables(old, new)["differ"].rows == (("code", "raserec_finetuned 2", "raserec_finetuned 3"),)
    assert tables(old, old)["same"].rows == (("code", "raserec_finetuned 2"), ("dim", "8"), ("seed", "42"))
    assert tables(old, run(3))["differ"].rows == (("code", "raserec_finetuned 2", "–"),)


def test_last_values_of_courses_stand_apart_from_the_figures_of_the_run():
    course = Curve(steps=(1, 2), values=(0.5, 0.25))
    one = run(1, metrics={"loss": 0.25, "best_AUC": 0.5}, curves={"loss": course})
    other = run(2, metrics={"loss": 0.5, "best_AUC": 0.75, "test/recent/ECE": 0.1}, curves={})
    found = tables(one, other)
    assert found["figures"].rows == (("best_AUC", "0.5", "0.75 *", "+0.25"), ("test/recent/ECE", "–", "0.1", "–"))
    assert found["last"].rows == (("loss", "0.25 *", "0.5", "+0.25"),)


def test_large_figures_and_their_differences_are_written_out():
    found = tables(run(1, metrics={"samples_per_s": 40881.7}), run(2, metrics={"samples_per_s": 23077.5}))
    assert found["figures"].rows == (("samples_per_s", "40,882 *", "23,078", "-17,804"),)


def test_of_calibration_errors_the_least_is_best():
    found = tables(run(1, metrics={"test/recent/ECE": 0.2}), run(2, metrics={"test/recent/ECE": 0.1}))
    assert found["figures"].rows == (("test/recent/ECE", "0.2", "0.1 *", "-0.1"),)


def test_the_page_holds_everything_and_refers_to_nothing_outside(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(picture, "PNG")
    curve = Curve(steps=(1, 2, 3), values=(0.5, math.nan, 0.25))
    once = Curve(steps=(0,), values=(1.0,))
    report = compare_runs(
        [
            run(1, {"alpha": "<b>0.5</b>"}, {"loss": 0.25}, curves={"loss": curve, "once": once}),
            run(2, {"alpha": "0.7"}, {"loss": math.nan}, curves={"loss": curve}),
        ]
    )  # fmt: skip
    paths = write_comparison(report, Pictures({"plots/training.png": {1: picture.getvalue()}}), tmp_path)
    page = paths.html.read_text()
    assert "&lt;b&gt;0.5" in page
    assert "<b>0.5" not in page
    assert set(paths.plots) == {"course-loss", "B-0"}  # a single value has no course
    assert "B: plots/training.png" in page
    assert page.count("data:image/png;base64,") == 1
    assert "<script" not in page
    assert 'src="http' not in page
    assert json.loads(paths.json.read_text())["runs"][1]["metrics"] == {"loss": None}


@pytest.mark.parametrize("letters", [2, 26])
def test_as_many_runs_as_there_are_letters(letters):
    report = compare_runs([run(number % 10) for number in range(letters)])
    assert len(report.letters) == letters
    assert len(comparison_tables(report)) == 5
