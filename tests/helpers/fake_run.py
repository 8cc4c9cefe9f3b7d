"""Stands for an MLflow run, without MLflow's server: keeps what it is told."""

from pathlib import Path
from typing import Any


class FakeRun:
    """What assets tell a run.

    Args:
        folder: where `log_pyfunc` saves models, as MLflow would; None: nowhere.
        uris: what `log_pyfunc` answers instead, one after the other; None: MLflow is away.
    """

    def __init__(self, folder: Path | None = None, uris: tuple[str | None, ...] = (), url: str = "") -> None:
        self.url, self.lost = url, ""
        self.metrics: list[tuple[str, float, int]] = []
        self.files: list[tuple[Path, str]] = []
        self.models: list[dict[str, Any]] = []
        self._folder, self._uris = folder, list(uris)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """As `TrackedRun` does."""
        self.metrics += [(name, value, step) for name, value in values.items()]

    def log_table(self, table: Any, file: str) -> None:
        """As `TrackedRun` does."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """As `TrackedRun` does."""
        self.files.append((path, folder))

    def log_pyfunc(
        self, name: str, model_file: Path, files: dict[str, Path], requirements: list[str], **options: Any
    ) -> str | None:
        """As `TrackedRun` does."""
        self.models.append({"name": name, "files": sorted(files), **options})
        if self._folder is None:
            return self._uris.pop(0)
        import mlflow

        mlflow.pyfunc.save_model(
            self._folder / name,
            python_model=str(model_file),
            artifacts={key: str(path) for key, path in files.items()},
            pip_requirements=requirements,
            **options,
        )
        return str(self._folder / name)
