"""Group `reports`: both tracks on one page."""

from assets.framework.reuse import Outcome
from assets.framework.stage import Job, stage
from assets.reports.publish import links_to, log_report
from rarec.config import Settings
from rarec.reports.comparison import build_comparison_report, comparison_markdown, write_comparison_report
from rarec.reports.ctr.records import CtrReport
from rarec.reports.ranking.records import RankingReport


@stage(
    group="reports",
    track="both",
    version="1",
    inputs=("ranking_metrics", "ctr_metrics"),
    kinds={"json", "html"},
)
def comparison_report(job: Job[Settings]) -> Outcome:
    """Both tracks' figures of the test split on one page."""
    report = build_comparison_report(
        RankingReport.model_validate_json(job.inputs["ranking_metrics"].file("report.json").read_text()),
        CtrReport.model_validate_json(job.inputs["ctr_metrics"].file("report.json").read_text()),
        tuple(links_to(job.run)),
    )
    paths = write_comparison_report(report, job.folder)
    log_report(job.run, paths)
    return Outcome(markdown={"tables": comparison_markdown(report)}, files={"report": paths.html.name})
