"""Both tracks' reports on one page, from the small reports of the two tracks' own tests."""

import ctr_report_toys as of_ctr
import pytest
import ranking_report_toys as of_ranking

from rarec.errors import InputError
from rarec.reports.comparison import (
    ComparisonReport,
    build_comparison_report,
    comparison_markdown,
    comparison_tables,
    write_comparison_report,
)
from rarec.reports.tables import number


@pytest.fixture(scope="module")
def report():
    ctr = of_ctr.make_report()
    ranking = of_ranking.make_report().model_copy(update={"dataset": ctr.dataset})
    return build_comparison_report(ranking, ctr)


def test_page_shows_the_test_figures_of_both_tracks(report, tmp_path):
    page = write_comparison_report(report, tmp_path).html.read_text()
    shown = [scores for scores in report.ranking.scores if scores.split == "test"]
    assert shown
    for scores in shown:
        assert number(scores.metrics["NDCG@10"]) in page
    for scores in report.ctr.scores:
        figure = f"{scores.metrics['AUC'].value:.4f}".lstrip("0")
        assert (figure in page) == (scores.split == "test"), scores.model
    assert "<script" not in page


def test_tables_are_of_the_test_split_only(report):
    tables = comparison_tables(report)
    assert {table.section for table in tables} == {"ranking", "ctr"}
    assert all(", test split" in table.where and ", validation split" not in table.where for table in tables)
    assert all(table.title in comparison_markdown(report) for table in tables)


def test_json_round_trip(report, tmp_path):
    text = write_comparison_report(report, tmp_path).json.read_text()
    assert ComparisonReport.model_validate_json(text).ctr.models == report.ctr.models


def test_reports_of_two_data_sets_are_refused(report):
    other = report.ranking.model_copy(update={"dataset": "another"})
    with pytest.raises(InputError, match="the ranking report is about another, but the CTR report is about"):
        build_comparison_report(other, report.ctr)
