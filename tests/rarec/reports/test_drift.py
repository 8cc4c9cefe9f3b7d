import json

import pytest

from rarec.champions.drift import DriftRule, RellaDriftRule
from rarec.reports.drift import DriftReport, drift_markdown, drift_tables, write_drift_report


def make_report(rule=None, **changes):
    values = {
        "dataset": "toy",
        "data_version": "v1",
        "seeds": {},
        "split_rule": "events since",
        "models": ("version 3",),
        "version": 3,
        "events": 1200,
        "users": 90,
        "first": 100,
        "last": 200,
        "then": "leave-one-out test: 80",
        "before": {"NDCG@10": 0.1},
        "now": {"NDCG@10": 0.08, "unknown_items": 0.25},
        "choice": "NDCG@10",
        "rule": rule or DriftRule(),
        "verdict": "finetune",
        "reason": "NDCG@10 went from 0.1000 to 0.0800 (-20.0%)",
    }
    return DriftReport(**(values | changes))


def test_figures_stand_beside_those_of_the_promotion():
    (table,) = drift_tables(make_report())
    assert table.rows == (("NDCG@10", "0.1000", "0.0800", "-0.0200"), ("unknown_items", "–", "0.2500", "–"))
    assert "toy, version 3, 1,200 new events of 90 users" in drift_markdown(make_report())


@pytest.mark.parametrize("rule", [DriftRule(least_events=7), RellaDriftRule(tune_drop=0.5)])
def test_page_and_json(tmp_path, rule):
    choice = "NDCG@10" if isinstance(rule, DriftRule) else "AUC"
    report = make_report(rule, choice=choice, before={choice: 0.7}, now={choice: 0.65})
    paths = write_drift_report(report, tmp_path)
    page = paths.html.read_text()
    for text in ("finetune", f"{choice} now", "0.6500", "at promotion 0.7000", "1,200"):
        assert text in page
    assert DriftReport.model_validate_json(paths.json.read_text()) == report
    assert json.loads(paths.json.read_text())["rule"] == rule.model_dump()


def test_a_figure_that_could_not_be_measured_is_a_dash(tmp_path):
    page = write_drift_report(make_report(now={}), tmp_path).html.read_text()
    assert '<span class="label">NDCG@10 now</span> <span class="value">–</span>' in page
