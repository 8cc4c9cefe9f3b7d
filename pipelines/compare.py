"""`make compare RUNS="..."`: runs that MLflow holds, side by side on one page and as tables in the terminal."""

import re
import warnings
from dataclasses import replace
from typing import Annotated

import typer

from rarec.errors import InputError
from resources.settings import RarecHome

NAME_WIDTH = 60  # validation/unmasked/pre-trained/NDCG_at_10
OTHER_LENGTHS = re.compile(r"(HR|NDCG|MRR)_at_(?!10$)")


def main(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Ids of MLflow runs, beginnings of ids, or names in quotes.")
    ] = None,
) -> None:
    """Write the page and print its path, the settings that differ and the figures."""
    warnings.filterwarnings("ignore")
    from pipelines.definitions import default_resources
    from rarec.reports.run_comparison import compare_runs, comparison_tables, write_comparison
    from rarec.reports.tables import Table, as_text

    try:
        home = RarecHome.from_environment()
        recorded = default_resources(home)["tracking"].runs()
        if not runs:
            listed = recorded.newest()
            if not listed:
                print("There are no runs yet; make run makes some")
                return
            table = Table(
                section="runs",
                title="The newest runs",
                where=f"make compare RUNS='{' '.join(run.run_id[:8] for run in listed[1::-1])}' sets some side by side",
                header=("id", "name", "data set", "when", "ended", "main figure"),
                rows=tuple(
                    (run.run_id[:8], run.name, run.dataset, run.started, run.status, run.figure) for run in listed
                ),
                n_text=6,
            )
            print(as_text([table], NAME_WIDTH), end="")
            return
        found = recorded.find(runs)
        report = compare_runs([recorded.read(run) for run in found])
        folder = home.root / "comparisons" / "-".join(run.info.run_id[:8] for run in found)
        paths = write_comparison(report, recorded.pictures(found), folder)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    for letter, run in zip(report.letters, report.runs, strict=True):
        print(f"{letter} = {run.name} ({run.run_id[:8]}, {run.status.lower()})")
    tables = [table for table in comparison_tables(report) if table.section in ("differ", "figures")]
    # Of the lengths of lists the terminal shows the usual one; all stand on the page.
    runs_named = ", ".join(report.letters)
    short = [
        replace(one, where=runs_named, rows=tuple(row for row in one.rows if not OTHER_LENGTHS.search(row[0])))
        for one in tables
    ]
    print("\n" + as_text([table for table in short if table.rows], NAME_WIDTH))
    print(f"page:   {paths.html}")


if __name__ == "__main__":
    typer.run(main)
