"""Settings of one installation: where RaRec keeps things on this machine, how it trains, what it schedules.

Each setting is an environment variable. This is the only place that reads them, except `rarec.rella.merge`, which
stands alone. Settings of a single asset are run configuration and do not belong here.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rarec.config import refusals
from rarec.errors import InputError, one_line
from rarec.training.engine_settings import EngineSettings
from resources.disk import require_address

MLFLOW_DATABASE = "mlflow.db"  # in the folder `mlflow`, beside `artifacts`
LOOPBACK = "127.0.0.1"  # where `make ui` serves
# Defaults that resources and messages share with the variables below.
SCHEDULE = "0 3 * * 1"
REMOTE_SHELL = "ssh -o BatchMode=yes -o ServerAliveInterval=15"  # fails instead of asking; notices a cut network
SETTLE_S = 60
HEARTBEAT_S = 1800  # validation by rank 0 alone, or loading a language model, may take long
PEERS_PYTHON = "benchmarks/peers/.venv/bin/python"
ENGINE_VARIABLES = {name: f"RAREC_{name.upper()}" for name in EngineSettings.model_fields}


def _names(given: object) -> object:
    return tuple(part.strip() for part in given.split(",") if part.strip()) if isinstance(given, str) else given


def _full_path(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (RuntimeError, OSError) as error:  # nobody's home, links in a circle, or a name that is too long
        why = one_line(error).rstrip(".")
        raise ValueError(f"{path} is not a path on this machine: {why}; set it to a full path") from error


# The text in each says how the documentation names the type.
Folder = Annotated[Path, AfterValidator(_full_path), "folder"]
Place = Annotated[
    str, AfterValidator(lambda text: text if "://" in text else str(_full_path(Path(text)))), "folder or URL"
]
Address = Annotated[str, AfterValidator(lambda text: text.rstrip("/")), "URL"]
Port = Annotated[int, Field(ge=1, le=65535), "port"]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), "names, separated by commas"]


def default_root() -> Path:
    """The folder .rarec beside the nearest pyproject.toml, looking upwards; without one, in the current folder."""
    here = Path.cwd()
    checkout = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
    return checkout / ".rarec"


def _own_mlflow_page(given: dict[str, Any]) -> str:
    served = given["tracking_uri"].startswith(("http://", "https://"))
    return given["tracking_uri"] if served else f"http://{LOOPBACK}:{given['mlflow_port']}"


class Installation(BaseSettings):
    """Folders, addresses and defaults of one installation. Tests pass an environment to `from_environment`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    root: Folder = Field(
        default_factory=default_root,
        validate_default=True,
        validation_alias="RAREC_HOME",
        description="Folder that holds everything RaRec writes.",
    )
    data: Folder = Field(
        default_factory=lambda given: given["root"] / "data",
        validation_alias="RAREC_DATA",
        description="Raw data sets, one folder each; never written to.",
    )
    artifacts: Annotated[str, "folder or URL"] = Field(
        default_factory=lambda given: str(given["root"] / "artifacts"),
        validation_alias="RAREC_ARTIFACTS",
        description="Artifact store: a folder or any fsspec URL.",
    )
    tracking_uri: Annotated[str, "URL"] = Field(
        default_factory=lambda given: f"sqlite:///{given['root'] / 'mlflow' / MLFLOW_DATABASE}",
        validation_alias="MLFLOW_TRACKING_URI",
        description="Where MLflow runs are recorded: a tracking server or a database.",
    )
    dagster_port: Port = Field(
        default=3000, validation_alias="DAGSTER_PORT", description="Dagster's port in `make ui`."
    )
    mlflow_port: Port = Field(default=5000, validation_alias="MLFLOW_PORT", description="MLflow's port in `make ui`.")
    dagster_ui: Address = Field(
        default_factory=lambda given: f"http://{LOOPBACK}:{given['dagster_port']}",
        validation_alias="DAGSTER_UI_URL",
        description="Address of the Dagster page, for links in notifications.",
    )
    mlflow_ui: Address = Field(
        default_factory=_own_mlflow_page,
        validation_alias="MLFLOW_UI_URL",
        description="Address of the MLflow page, for links in Dagster. If MLFLOW_TRACKING_URI names a server, the "
        "default is that server.",
    )

    scheduled: Names = Field(
        default=("demo",), validation_alias="RAREC_SCHEDULED", description="Data sets that the schedules run."
    )
    schedule: Annotated[str, "cron expression"] = Field(
        default=SCHEDULE, validation_alias="RAREC_SCHEDULE", description="When the schedules run, in UTC."
    )
    webhook: Annotated[str, "URL"] = Field(
        default="",
        repr=False,
        validation_alias="RAREC_WEBHOOK",
        description="Address to which failed runs are posted as JSON; a secret.",
    )
    pod_gpus: int = Field(
        default=0,
        ge=0,
        validation_alias="RAREC_POD_GPUS",
        description="On Kubernetes, run each step in its own pod, with this many GPUs if it trains. 0 runs steps as "
        "processes of one pod.",
    )

    incoming: Place = Field(
        default_factory=lambda given: str(given["data"]),
        validation_alias="RAREC_INCOMING",
        description="Where new interaction files arrive, in `<data set>/incoming/` below it. Follows RAREC_DATA.",
    )
    settle_s: int = Field(
        default=SETTLE_S,
        ge=0,
        validation_alias="RAREC_SETTLE",
        description="Seconds that a new file must stay unchanged before it is read.",
    )
    incoming_interval_s: int = Field(
        default=30,
        ge=1,
        validation_alias="RAREC_INCOMING_INTERVAL",
        description="Minimum seconds between two ticks of `incoming_sensor`.",
    )

    peers: Annotated[str, "file"] = Field(
        default=PEERS_PYTHON,
        validation_alias="RAREC_PEERS",
        description="Python of the environment of other libraries, which `make peers` builds.",
    )
    nproc: int = Field(
        default=0,
        ge=0,
        validation_alias="RAREC_NPROC",
        description="Training processes on each machine. 0 starts one per GPU, or one without a GPU.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        validation_alias="RAREC_THREADS",
        description="CPU threads of each training process. 0 shares out the cores.",
    )
    hostfile: Annotated[str, "file"] = Field(
        default="", validation_alias="RAREC_HOSTFILE", description="DeepSpeed hostfile of the machines to train on."
    )
    remote_shell: Annotated[str, "command"] = Field(
        default=REMOTE_SHELL,
        validation_alias="RAREC_REMOTE_SHELL",
        description="Command that runs a shell line on a host of the hostfile.",
    )
    rendezvous: Annotated[str, "host or host:port"] = Field(
        default="",
        validation_alias="RAREC_RENDEZVOUS",
        description="Address at which machines that join a training reach this one.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        validation_alias="RAREC_NODES",
        description="Machines that train together through the rendezvous, this one included.",
    )
    heartbeat_s: int = Field(
        default=HEARTBEAT_S,
        ge=0,
        validation_alias="RAREC_HEARTBEAT",
        description="Seconds without a report after which a worker counts as hung. 0 means never.",
    )
    worker_environment: Names = Field(
        default=(),
        validation_alias="RAREC_WORKER_ENVIRONMENT",
        description="Further variables that workers on other machines get, by name.",
    )

    engine: EngineSettings = Field(
        default=EngineSettings(),
        description="How trainings compute, share memory and save. Its fields are variables, such as RAREC_PRECISION.",
    )

    @field_validator("root")
    @classmethod
    def _is_usable(cls, root: Path) -> Path:
        if os.path.exists(root) and not root.is_dir():
            raise ValueError(f"{root} is a file; set it to a folder")
        return require_address(root)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment variables; nothing else."""
        return init_settings, _Variables(settings_cls, os.environ)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Installation":
        """Read the variables from ``environment`` (default: this process's). An empty value counts as unset.

        Raises:
            InputError: a value is refused; names the variable, what it must be and what to do.
        """
        environment = os.environ if environment is None else environment
        try:
            # mypy takes the fields for the only arguments.
            installation = cls(_build_sources=((_Variables(cls, environment),), {}))  # type: ignore[call-arg]
        except ValidationError as error:
            raise InputError(_refusal(error)) from error
        missing = [name for name in installation.worker_environment if not environment.get(name, "").strip()]
        if missing:
            raise InputError(
                f"RAREC_WORKER_ENVIRONMENT names variables that are not set: {', '.join(missing)}. Set them or remove "
                "their names."
            )
        return installation

    @property
    def mlflow(self) -> Path:
        """Embedded MLflow: database and run artifacts."""
        return self.root / "mlflow"

    @property
    def cache(self) -> Path:
        """Local copies of remote files; may be deleted at any time."""
        return self.root / "cache"

    @property
    def dagster(self) -> Path:
        """DAGSTER_HOME of `make run` and `make ui`."""
        return self.root / "dagster"

    @property
    def work(self) -> Path:
        """Working folders of trainings: job, log and checkpoints."""
        return self.root / "work"

    @property
    def announced(self) -> Path:
        """Where trainings are announced to machines that join."""
        return self.root / "announced"

    @property
    def ledgers(self) -> Path:
        """What was taken in from incoming files, one folder per data set. It cannot be rebuilt: back it up."""
        return self.root / "incoming"

    @property
    def datasets(self) -> Path:
        """TOML files that declare the user's own data sets."""
        return self.root / "datasets"


class _Variables(PydanticBaseSettingsSource):
    """The variables of one environment."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._given = {name: value for name, value in environment.items() if value.strip()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Value and variable of one field; None if the variable is not set."""
        variable = str(field.validation_alias or field_name)
        return self._given.get(variable), variable, False

    def __call__(self) -> dict[str, Any]:
        """All variables that are set, by name, and the engine's as one object."""
        found = [self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items()]
        values = {variable: value for value, variable, _ in found if value is not None and variable != "engine"}
        engine = {name: self._given[variable] for name, variable in ENGINE_VARIABLES.items() if variable in self._given}
        return {**values, "engine": _engine(engine)} if engine else values


def _engine(given: dict[str, Any]) -> EngineSettings:
    file = given.get("deepspeed")
    if file is not None:
        given["deepspeed"] = _read_object(Path(file).expanduser())
    try:
        return EngineSettings(**given)
    except ValidationError as error:
        # Contradictions name fields; users set variables.
        text = re.sub(rf"\b({'|'.join(ENGINE_VARIABLES)})\b", lambda match: ENGINE_VARIABLES[match[0]], _refusal(error))
        raise InputError(f"{text} (RAREC_DEEPSPEED is {file})" if file is not None else text) from error


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"RAREC_DEEPSPEED is {file}, and there is no such file; correct or unset it.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"RAREC_DEEPSPEED is {file}, which cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"RAREC_DEEPSPEED: {file} must hold a JSON object.")
    return content


def _refusal(error: ValidationError) -> str:
    """Which variables were refused, and what to do."""
    faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]  # a consequence
    details = [
        InitErrorDetails(type=fault["type"], loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {}))
        for fault in faults
    ]
    # pydantic names a default by its field.
    text = refusals(ValidationError.from_exception_data(error.title, details), {"root": "RAREC_HOME"})
    return text if all(fault["type"] == "value_error" for fault in faults) else f"{text}. Correct or unset it."
