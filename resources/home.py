"""Where RaRec keeps things on this machine; the only place that reads RaRec's environment variables."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from rarec.config import Settings
from rarec.errors import InputError


class RarecHome(Settings):
    """Folders and addresses of one installation; `from_environment` gives the defaults and honours the variables."""

    root: Path = Field(
        description="RAREC_HOME: the folder that holds everything RaRec writes. Default: .rarec/ in the checkout."
    )
    data: Path = Field(description="RAREC_DATA: raw data sets, one folder each. Default: data/ under RAREC_HOME.")
    artifacts: str = Field(
        description="RAREC_ARTIFACTS: artifact store, a folder or any fsspec URL. Default: artifacts/ under RAREC_HOME."
    )
    tracking_uri: str = Field(
        description="MLFLOW_TRACKING_URI: where MLflow runs go. Default: a sqlite file in mlflow/ under RAREC_HOME."
    )
    mlflow_ui: str = Field(
        description="MLFLOW_UI_URL: address of the MLflow page that links in Dagster point to. Default: the tracking "
        "server itself, or http://127.0.0.1:5000 (`make ui`) for the sqlite file."
    )

    nproc: int = Field(
        default=0, ge=0, description="RAREC_NPROC: training processes. Default: one a GPU, or one without GPUs."
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="RAREC_THREADS: CPU threads of each training process. Default: its share of the cores.",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "RarecHome":
        """Read the variables above from `environment` (default: the process's own); an empty value counts as unset."""
        values = {k: v for k, v in (os.environ if environment is None else environment).items() if v.strip()}
        root = Path(values["RAREC_HOME"]).expanduser() if "RAREC_HOME" in values else _project_root() / ".rarec"
        root = root.resolve()
        if root.exists() and not root.is_dir():
            raise InputError(f"RAREC_HOME is {root}, which is a file; set it to a folder.")
        data = Path(values.get("RAREC_DATA", root / "data")).expanduser().resolve()
        tracking_uri = values.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow' / 'mlflow.db'}")
        own_page = tracking_uri if tracking_uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
        return cls(
            root=root,
            nproc=_whole_number(values, "RAREC_NPROC"),
            threads=_whole_number(values, "RAREC_THREADS"),
            data=data,
            artifacts=values.get("RAREC_ARTIFACTS", str(root / "artifacts")),
            tracking_uri=tracking_uri,
            mlflow_ui=values.get("MLFLOW_UI_URL", own_page).rstrip("/"),
        )

    @property
    def mlflow(self) -> Path:
        """Embedded MLflow: database and run artifacts."""
        return self.root / "mlflow"

    @property
    def cache(self) -> Path:
        """Downloaded copies of remote artifacts; may be deleted at any time."""
        return self.root / "cache"

    @property
    def dagster(self) -> Path:
        """DAGSTER_HOME of `make run` and `make ui`."""
        return self.root / "dagster"

    @property
    def work(self) -> Path:
        """Working folders of training runs: job, log and checkpoints."""
        return self.root / "work"

    @property
    def datasets(self) -> Path:
        """TOML files that declare the user's own data sets."""
        return self.root / "datasets"


def _whole_number(values: Mapping[str, str], name: str) -> int:
    text = values.get(name, "0")
    if not text.isdigit():
        raise InputError(f"{name} is {text!r}; set it to a whole number.")
    return int(text)


def _project_root() -> Path:
    """The checkout around the current folder: the nearest parent with a pyproject.toml, else the folder itself."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
