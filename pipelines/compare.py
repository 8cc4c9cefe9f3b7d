"""`make compare RUNS="..."`: runs that MLflow holds, side by side on one page and as tables in the terminal."""

import warnings
from typing import Annotated

import typer

from rarec.errors import InputError
from resources.home import RarecHome

NAME_WIDTH = 60  # validation/unmasked/pre-trained/NDCG_at_50


def main(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Ids of MLflow runs, beginnings of ids, or names in quotes.")
    ] = None,
) -> None:
    """Write the page and print its path, the settings that differ and the figures."""
    warnings.filterwarnings("ignore")
    from pipelines.definitions import default_resources
    from rarec.evaluation.run_comparison import compare_runs, comparison_tables, write_comparison
    from rarec.evaluation.tables import as_text

    try:
        home = RarecHome.from_environment()
        recorded = default_resources(home)["tracking"].runs()
        found = recorded.find(runs or [])
        report = compare_runs([recorded.read(run) for run in found])
        folder = home.root / "comparisons" / "-".join(run.info.run_id[:8] for run in found)
        paths = write_comparison(report, recorded.pictures(found), folder)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    for letter, run in zip(report.letters, report.runs, strict=True):
        print(f"{letter} = {run.name} ({run.run_id[:8]}, {run.status.lower()})")
    shown = [table for table in comparison_tables(report) if table.section in ("differ", "figures") and table.rows]
    print("\n" + as_text(shown, NAME_WIDTH))
    print(f"page:   {paths.html}")


if __name__ == "__main__":
    typer.run(main)
