"""`make runs`: the newest MLflow runs as a table in the terminal."""

import warnings

from rarec.errors import InputError
from resources.settings import Installation

NAME_WIDTH = 60


def main() -> None:
    """Print the table, or that there are no runs yet."""
    warnings.filterwarnings("ignore")
    from rarec.reports.tables import Table, as_text

    try:
        installation = Installation.from_environment()
        from pipelines.definitions import default_resources  # reads the environment, too

        runs = default_resources(installation)["tracking"].newest_runs()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    if not runs:
        print("There are no runs yet. Make some with: make run")
        return
    table = Table(
        section="runs",
        title="Newest runs",
        where=f"to compare some, tick them in MLflow ({installation.mlflow_ui}, started by make ui) and press Compare",
        header=("id", "name", "data set", "started", "status", "main figure"),
        rows=tuple((run.run_id[:8], run.name, run.dataset, run.started, run.status, run.figure) for run in runs),
        n_text=6,
    )
    print(as_text([table], longest=NAME_WIDTH), end="")


if __name__ == "__main__":
    main()
