"""Both tracks on one page, from the reports that their assets keep."""

import ctr_report_toys as of_ctr
import pytest
import ranking_report_toys as of_ranking
from plant import failures, metadata

from rarec.reports.comparison import ComparisonReport
from rarec.reports.ctr.report import write_ctr_report
from rarec.reports.ranking.report import write_report

TRACK = "tables"


@pytest.fixture
def reports(plant, tmp_path):
    """The reports of both tracks, as if they had been materialised."""
    ctr = of_ctr.make_report()
    ranking = of_ranking.make_report().model_copy(update={"dataset": ctr.dataset})
    for asset, write, report in (("ranking_metrics", write_report, ranking), ("ctr_metrics", write_ctr_report, ctr)):
        (tmp_path / asset).mkdir()
        write(report, tmp_path / asset)
        plant.put(asset, "borrowed", tmp_path / asset, {})
    return ranking, ctr


def test_the_page_holds_both_reports_and_says_where_its_run_is(plant, reports):
    result = plant.run("borrowed", track="everything", only=["comparison_report"])
    assert result.success, failures(result)
    artifact = plant.artifact(result, "comparison_report")
    kept = ComparisonReport.model_validate_json(artifact.file("report.json").read_text())
    ranking, ctr = reports
    assert kept.ranking.scores == ranking.scores
    assert kept.ctr.scores == ctr.scores
    told = metadata(result)["comparison_report"]
    assert told["mlflow_run"] in [link.url for link in kept.links]
    assert told["report"] == str(artifact.file("report.html"))
    for model in (*ranking.models, *ctr.models):
        assert model in told["tables"]


def test_one_track_alone_is_not_enough(plant):
    failed = failures(plant.run("tiny", track="everything", only=["comparison_report"]))
    assert failed["comparison_report"].startswith("ranking_metrics has not been materialised for tiny")
