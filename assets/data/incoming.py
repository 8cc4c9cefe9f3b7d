"""Group `raw`: the ledger of the files that arrive after publication."""

from typing import Any

import dagster as dg
import pandas as pd
import pydantic

from assets.framework.reuse import markdown_table
from assets.framework.stage import Request, stage
from rarec.config import Settings
from rarec.errors import one_line
from rarec.training.progress import progress_log
from resources.incoming import UNFINISHED, Ingestion, ingest, wait_for_settled, withdraw

SHOWN = 20  # files and bad rows in metadata


class IncomingSettings(Settings):
    """Actions besides ingesting new files."""

    judge_again: bool = pydantic.Field(
        default=False,
        description="Also judge again what was withdrawn or refused or had bad rows, if its file is still there, "
        "unchanged.",
    )
    withdraw: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Files whose rows are taken back and deleted, each by its name or the beginning of its sha256.",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "IncomingSettings":
        if self.withdraw and self.judge_again:
            raise ValueError("withdraw and judge_again contradict each other; set one of them per run")
        return self


@stage(
    group="raw",
    version="2",
    settings=IncomingSettings,
    kinds={"sqlite", "parquet"},
    makes_artifact=False,
    check_specs=[
        dg.AssetCheckSpec(
            "files_accepted",
            asset="incoming_interactions",
            description="Every file was taken: none was refused, unreadable or left out. Only a warning: the others "
            "are used.",
        )
    ],
)
def incoming_interactions(request: Request[IncomingSettings]) -> dg.MaterializeResult:
    """The ledger of files that arrived after publication: each content judged once, bad rows set aside, rows kept."""
    name, log, settings = request.dataset, request.context.log, request.settings
    source, ledger = request.workspace.incoming_files(name), request.workspace.ledger(name)
    withdrawn = withdraw(ledger, settings.withdraw) if settings.withdraw else []
    try:
        settled, settling = wait_for_settled(source, ledger, request.workspace.settle_s)
        report = Ingestion()
        if settled or settings.judge_again:
            report = ingest(source, ledger, request.spec, settled, judge_again=settings.judge_again)
        others = source.left_out()
    except Exception as error:  # each kind of store has its own errors
        raise dg.Failure(
            f"new files in {source.url} cannot be ingested: {one_line(error)}; finished files are kept. Run again to "
            "go on"
        ) from error
    state, files = ledger.state(), ledger.files()
    metadata: dict[str, Any] = {
        "reused": not report.judged and not withdrawn,
        "folder": source.url,
        "files_judged_now": len(report.judged),
        "files_not_settled": len(settling) + len(report.changing),
    }
    if report.unreadable:
        shown = [f"{file} ({error})" for file, error in list(report.unreadable.items())[:SHOWN]]
        metadata["files_not_readable"] = ", ".join(shown)
        log.warning(
            f"{len(report.unreadable)} files in {source.url} cannot be read (first: {shown[0]}); a later run "
            "ingests them, once this process can read them"
        )
    if len(files):
        in_place = files[files["superseded_by"].isna()]
        refused = in_place[in_place["refused"] != ""]
        taken_back = in_place[in_place["withdrawn"].notna()]
        accepted = files[files["entry"].isin(state.entries)]
        metadata |= {
            "files": len(accepted),
            "files_refused": len(refused),
            "files_withdrawn": len(taken_back),
            "bad_rows": int(accepted["bad_rows"].sum()),
            "dagster/row_count": int(accepted["rows"].sum()),
            "ledger": dg.MetadataValue.path(str(ledger.folder)),
        }
        if report.judged:
            metadata["judged now"] = dg.MetadataValue.md(first_rows(report.table))
        if len(refused):
            metadata["refused"] = dg.MetadataValue.md(first_rows(refused[["names", "refused", "recorded"]][::-1]))
        if len(taken_back):
            newest_first = taken_back[["names", "sha256", "rows", "withdrawn"]].sort_values(
                "withdrawn", ascending=False
            )
            metadata["withdrawn"] = dg.MetadataValue.md(first_rows(newest_first))
        if withdrawn:
            log.info(f"withdrawn now: {', '.join(withdrawn)}")
        text = f"{len(report.judged)} files judged now, {len(accepted)} hold {accepted['rows'].sum()} rows"
        progress_log.info("%s", f"incoming_interactions: {text}")
    # Names of unfinished files are a convention; anything else that is not taken is worth a word.
    if others:
        metadata["left out"] = dg.MetadataValue.md(first_rows(pd.DataFrame(others.items(), columns=["file", "why"])))
    told = {file: why for file, why in others.items() if why != UNFINISHED}
    left_out = [f"{file}: {reason}" for file, reason in (report.refused | report.unreadable | told).items()]
    accepted_all = dg.AssetCheckResult(
        passed=not left_out,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files": len(left_out), "reasons": "; ".join(left_out[:SHOWN])} if left_out else {},
    )
    return dg.MaterializeResult(
        metadata=metadata, data_version=dg.DataVersion(state.version or "empty"), check_results=[accepted_all]
    )


def first_rows(table: Any) -> str:
    """The first rows as Markdown, and how many more there are."""
    more = len(table) - SHOWN
    return markdown_table(table.head(SHOWN)) + (f"\n\n… and {more} more" if more > 0 else "")
