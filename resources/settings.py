"""Where RaRec keeps things on this machine.

The only place that reads RaRec's environment variables, but for `rarec.rella.merge`, which stands alone.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from rarec.config import Settings, refusals
from rarec.errors import InputError
from rarec.training.engine_settings import EngineSettings

MLFLOW_DATABASE = "mlflow.db"  # in the folder `mlflow`, beside `artifacts`
LOOPBACK = "127.0.0.1"  # where `make ui` serves
SCHEDULE = "0 3 * * 1"  # Mondays, 03:00 UTC
REMOTE_SHELL = "ssh -o BatchMode=yes -o ServerAliveInterval=15"  # fails rather than ask; notices a cut network
SETTLE_S = 60
INCOMING_INTERVAL_S = 30
HEARTBEAT_S = 1800  # validation by rank 0 alone, or a language model's loading, may take long


class RarecHome(Settings):
    """Workspace and addresses of one installation; `from_environment` gives the defaults and honours the variables."""

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
        "server itself, or that of `make ui` for the sqlite file."
    )
    dagster_ui: str = Field(
        description="DAGSTER_UI_URL: address of the Dagster page that notices of failed runs point to. Default: that "
        "of `make ui`."
    )
    dagster_port: int = Field(default=3000, description="DAGSTER_PORT: of `make ui`. Default: 3000.")
    mlflow_port: int = Field(default=5000, description="MLFLOW_PORT: of `make ui`. Default: 5000.")

    scheduled: tuple[str, ...] = Field(
        default=("demo",),
        description="RAREC_SCHEDULED: data sets of the schedules, separated by commas. Default: demo.",
    )
    schedule: str = Field(
        default=SCHEDULE,
        description="RAREC_SCHEDULE: when the schedules run, as a cron expression in UTC. Default: Mondays at 03:00.",
    )
    webhook: str = Field(
        default="",
        repr=False,
        description="RAREC_WEBHOOK: address to which failed runs are posted as JSON; a secret. Default: none.",
    )
    pod_gpus: int = Field(
        default=0,
        ge=0,
        description="RAREC_POD_GPUS: on Kubernetes, every step in a pod of its own, with so many GPUs where it trains. "
        "Default 0: steps are processes beside each other.",
    )

    incoming: str = Field(
        default="",
        description="RAREC_INCOMING: where new interaction files arrive, a folder or any fsspec URL with a folder "
        "<data set>/incoming/ for each data set. Default: RAREC_DATA.",
    )
    settle_s: int = Field(
        default=SETTLE_S,
        ge=0,
        description="RAREC_SETTLE: seconds a new file must stay as it is before it is read. Default: 60.",
    )
    incoming_interval_s: int = Field(
        default=INCOMING_INTERVAL_S,
        ge=1,
        description="RAREC_INCOMING_INTERVAL: least seconds between two ticks of `incoming_sensor`. Default: 30.",
    )

    nproc: int = Field(
        default=0, ge=0, description="RAREC_NPROC: training processes. Default: one a GPU, or one without GPUs."
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="RAREC_THREADS: CPU threads of each training process. Default: its share of the cores.",
    )

    hostfile: str = Field(
        default="", description="RAREC_HOSTFILE: DeepSpeed hostfile of the machines to train on. Default: this machine."
    )
    remote_shell: str = Field(
        default=REMOTE_SHELL,
        description="RAREC_REMOTE_SHELL: what runs a command on a host of the hostfile. Default: ssh.",
    )
    rendezvous: str = Field(
        default="",
        description="RAREC_RENDEZVOUS: host[:port] under which machines that join reach this one. Default: none join.",
    )
    nodes: int = Field(
        default=1, ge=1, description="RAREC_NODES: machines that train together through the rendezvous. Default: 1."
    )
    heartbeat_s: int = Field(
        default=HEARTBEAT_S,
        ge=0,
        description="RAREC_HEARTBEAT: seconds after which a silent worker counts as hung, 0: never. Default: 1800.",
    )
    worker_environment: tuple[str, ...] = Field(
        default=(),
        description="RAREC_WORKER_ENVIRONMENT: names, separated by commas, of further variables that workers on other "
        "machines get. Default: only those listed in docs/training.md.",
    )

    engine: EngineSettings = Field(
        default=EngineSettings(),
        description="RAREC_PRECISION, RAREC_ZERO_STAGE, RAREC_OFFLOAD, RAREC_ACCUMULATION, RAREC_CHECKPOINT_STEPS, "
        "RAREC_CHECKPOINT_MINUTES, and RAREC_DEEPSPEED, a file of further settings in DeepSpeed's own format: how "
        "trainings are held, computed and saved.",
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
        tracking_uri = values.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow' / MLFLOW_DATABASE}")
        mlflow_port = _port(values, "MLFLOW_PORT", 5000)
        dagster_port = _port(values, "DAGSTER_PORT", 3000)
        served = tracking_uri.startswith(("http://", "https://"))
        own_page = tracking_uri if served else f"http://{LOOPBACK}:{mlflow_port}"
        return cls(
            root=root,
            incoming=_place(values.get("RAREC_INCOMING", "")),
            settle_s=_whole_number(values, "RAREC_SETTLE", SETTLE_S),
            incoming_interval_s=max(1, _whole_number(values, "RAREC_INCOMING_INTERVAL", INCOMING_INTERVAL_S)),
            dagster_ui=values.get("DAGSTER_UI_URL", f"http://{LOOPBACK}:{dagster_port}").rstrip("/"),
            dagster_port=dagster_port,
            mlflow_port=mlflow_port,
            scheduled=_names(values.get("RAREC_SCHEDULED", "demo")),
            schedule=values.get("RAREC_SCHEDULE", SCHEDULE),
            webhook=values.get("RAREC_WEBHOOK", ""),
            pod_gpus=_whole_number(values, "RAREC_POD_GPUS"),
            nproc=_whole_number(values, "RAREC_NPROC"),
            threads=_whole_number(values, "RAREC_THREADS"),
            hostfile=values.get("RAREC_HOSTFILE", ""),
            remote_shell=values.get("RAREC_REMOTE_SHELL", REMOTE_SHELL),
            rendezvous=values.get("RAREC_RENDEZVOUS", ""),
            nodes=_whole_number(values, "RAREC_NODES", 1),
            heartbeat_s=_whole_number(values, "RAREC_HEARTBEAT", HEARTBEAT_S),
            worker_environment=_present_names(values, "RAREC_WORKER_ENVIRONMENT"),
            engine=_engine(values),
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
    def announced(self) -> Path:
        """Where trainings are announced to the machines that join them."""
        return self.root / "announced"

    @property
    def ledgers(self) -> Path:
        """What came out of incoming files, a folder for each data set; it cannot be made again from anything else."""
        return self.root / "incoming"

    @property
    def datasets(self) -> Path:
        """TOML files that declare the user's own data sets."""
        return self.root / "datasets"


def _place(text: str) -> str:
    """A URL as it is, a folder in full."""
    return text if not text or "://" in text else str(Path(text).expanduser().resolve())


def _whole_number(values: Mapping[str, str], name: str, default: int = 0) -> int:
    text = values.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"{name} is {text!r}; set it to a whole number.")
    return int(text)


def _port(values: Mapping[str, str], name: str, default: int) -> int:
    port = _whole_number(values, name, default)
    if not 0 < port < 65536:
        raise InputError(f"{name} is {port}; set it to a port number, 1 to 65535.")
    return port


def _engine(values: Mapping[str, str]) -> EngineSettings:
    variables = {f"RAREC_{name.upper()}": name for name in EngineSettings.model_fields}
    given: dict[str, Any] = {name: values[variable] for variable, name in variables.items() if variable in values}
    if "deepspeed" in given:
        file = Path(given["deepspeed"]).expanduser()
        if not file.is_file():
            raise InputError(f"RAREC_DEEPSPEED is {file}, and there is no such file; correct or unset it.")
        try:
            given["deepspeed"] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"RAREC_DEEPSPEED is {file}, which cannot be read as JSON: {error}") from error
        if not isinstance(given["deepspeed"], dict):
            raise InputError(f"RAREC_DEEPSPEED: {file} must hold a JSON object.")
    try:
        return EngineSettings(**given)
    except ValidationError as error:
        # Contradictions speak of fields; here they are set by variables.
        said = re.sub(rf"\b({'|'.join(variables.values())})\b", lambda m: f"RAREC_{m[0].upper()}", refusals(error))
        file_of = f" (RAREC_DEEPSPEED is {values['RAREC_DEEPSPEED']})" if "RAREC_DEEPSPEED" in values else ""
        raise InputError(said + file_of) from error


def _present_names(values: Mapping[str, str], name: str) -> tuple[str, ...]:
    names = _names(values.get(name, ""))
    missing = [one for one in names if one not in values]
    if missing:
        raise InputError(f"{name} names {', '.join(missing)}, which is not set; set it or leave its name out.")
    return names


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _project_root() -> Path:
    """The checkout around the current folder: the nearest parent with a pyproject.toml, else the folder itself."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
