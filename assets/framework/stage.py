"""How an asset is declared: once, by `@stage`.

The declaration names group, code version, settings, inputs and kinds. Everything else follows from it: the run
configuration, the dependencies, the artifacts that are opened upstream, the identity, reuse, the build lock, retries,
cancellation, tags and owners, and the registry `STAGES`, from which the configuration reference is generated. The
decorated function holds the science: it gets a `Job`, fills ``job.folder`` and returns an `Outcome`.

Read on in `reuse` (an artifact is built once), `lineage` (what is opened upstream) and `training` (workers).
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import dagster as dg

from assets.framework import training
from assets.framework.champion import Champion, open_champion
from assets.framework.configuration import EventConfig, StageConfig, resolve, run_configuration
from assets.framework.lineage import upstream
from assets.framework.reuse import Identity, Outcome, materialise
from rarec.config import Settings
from rarec.data.spec import DatasetSpec
from rarec.data.templates import Template, find_template
from rarec.errors import InputError
from rarec.training.job import WorkerJob
from resources.artifacts.store import Artifact, ArtifactStore
from resources.mlflow.tracked_run import TrackedRun
from resources.mlflow.tracking import MlflowTracking
from resources.workers.launcher import TrainingLauncher
from resources.workspace import Workspace

S = TypeVar("S", bound=Settings)
F = TypeVar("F", bound=Callable[..., Any])

OWNER = "team:data-engineering"
TRAINING_POOL = "training"
WEEKLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=9), warn_window=timedelta(days=8))
TRACK_OF_GROUP = {
    "raw": "both",
    "sequences": "raserec",
    "recommender": "raserec",
    "text": "rella",
    "semantic": "rella",
    "index": "rella",
    "instruction": "rella",
    "language": "rella",
}
"""The group's track, by which an asset is found in Dagster (`tag:track=rella`). Stages of other groups name theirs."""


@dataclass(frozen=True)
class Request(Generic[S]):
    """What a stage is asked for, before it is known whether there is anything to build.

    Attributes:
        name: of the asset.
        inputs: the declared inputs' artifacts, by asset.
        prepared: what the stage's ``prepare`` returned.
        registered: the champion of a stage that declares one.
    """

    name: str
    settings: S
    spec: DatasetSpec
    inputs: Mapping[str, Artifact]
    context: dg.AssetExecutionContext
    store: ArtifactStore
    tracking: MlflowTracking
    workspace: Workspace
    force: bool = False
    prepared: Any = None
    registered: Champion | None = None

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.spec.name

    @property
    def template(self) -> Template:
        """The wording of the data set's prompts."""
        return find_template(self.spec.domain, self.spec.template)

    @property
    def launcher(self) -> TrainingLauncher:
        """Of stages that train or score."""
        launcher: TrainingLauncher = self.context.resources.launcher
        return launcher

    @property
    def champion(self) -> Champion:
        """The champion of a stage that declares one."""
        assert self.registered is not None, f"{self.name} declares no champion"
        return self.registered

    def path(self, name: str) -> Path:
        """Folder of an input, every file verified."""
        return self.inputs[name].path


@dataclass(frozen=True)
class Job(Request[S]):
    """A request that is being built: the artifact's ``folder`` to fill, and the MLflow ``run`` that records it."""

    folder: Path = field(kw_only=True)
    run: TrackedRun = field(kw_only=True)

    @property
    def workdir(self) -> Path:
        """Working folder of stages that train or score; a later attempt finds it again."""
        return self.workspace.workdir(self.name, self.run.fingerprint)

    def train(
        self, job: WorkerJob, output: Path | None = None, run: TrackedRun | None = None, variant: str = ""
    ) -> dict[str, Any] | None:
        """Run a worker and return its training's summary (`rarec.training.fit`), if it leaves one.

        A checkpoint that is there is used.

        Args:
            output: where it writes. Default: the artifact's folder.
            run: the MLflow run that gets its progress. Default: the artifact's.
            variant: name of one of several trainings for the same artifact.
        """
        return training.train(
            self.context, self.launcher, self.workdir / variant, run or self.run, job, output or self.folder
        )


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """A declaration, which decorates the function that builds: ``function(job: Job) -> Outcome``.

    Attributes:
        inputs: assets that are opened upstream; they are dependencies and, unless ``versions`` says otherwise, part of
            the identity.
        after: further dependencies, such as what is read through a registry.
        name: of the asset, if it is not the function's.
        track: `raserec`, `rella` or `both`, where the group does not tell it.
        champion: track whose champion is opened through the registry as ``job.champion``; unless ``versions`` says
            otherwise, its artifacts are part of the identity.
        trains: launches workers that train: adds the training pool, retries, cancellation, the build lock and the
            launcher, and the precision of the training to the identity.
        scores: the same for workers that only ask a model; the precision is not part of the identity.
        computes: takes its turn in the training pool, without workers.
        makes_artifact: False: the function gets the `Request` and returns a `dg.MaterializeResult` of its own.
        defaults_of: another stage whose defaults in a data set's file hold here, too.
        prepare: looks up what the identity needs and refuses what cannot be built; its result is ``job.prepared``.
        fingerprints: name in the identity -> input of which not only the content but the fingerprint counts.
        versions: what of the inputs is part of the identity, instead of all inputs.
        extras: what else belongs to the identity's configuration, beside the settings.
        config: the identity's configuration, instead of settings and extras.
        parts: asset -> description, for a stage that materialises several assets; ``job.name`` says which.
        read_weekly: somebody reads it every week, so Dagster's pages say when it is late.
        check_specs: of checks that the function evaluates itself.
    """

    group: str
    version: str
    kinds: Collection[str]
    settings: type[S] = Settings  # type: ignore[assignment]
    inputs: Sequence[str] = ()
    after: Sequence[str] = ()
    name: str = ""
    track: str = ""
    champion: str = ""
    trains: bool = False
    scores: bool = False
    computes: bool = False
    makes_artifact: bool = True
    defaults_of: str = ""
    prepare: Callable[[Request[S]], Any] | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    versions: Callable[[Request[S]], Mapping[str, Artifact | str]] | None = None
    extras: Callable[[Request[S]], Mapping[str, Any]] | None = None
    config: Callable[[Request[S]], Mapping[str, Any]] | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    automation: dg.AutomationCondition | None = None
    read_weekly: bool = False
    check_specs: Sequence[dg.AssetCheckSpec] = ()

    def __call__(self, function: Callable[..., Any]) -> dg.AssetsDefinition:
        """The asset that the function builds, registered in `STAGES`.

        Raises:
            ValueError: the declaration contradicts itself, or its name is taken.
        """
        declared = replace(
            self, name=self.name or function.__name__, track=self.track or TRACK_OF_GROUP.get(self.group, "")
        )
        declared._check()
        STAGES[declared.name] = declared
        return declared._asset(function)

    @property
    def assets(self) -> tuple[str, ...]:
        """What it materialises."""
        return tuple(self.parts or (self.name,))

    @property
    def launches(self) -> bool:
        """Whether it has workers."""
        return self.trains or self.scores

    def _check(self) -> None:
        if not self.track:
            raise ValueError(
                f"stage {self.name}: group {self.group!r} has no track; say track=, or add it to TRACK_OF_GROUP"
            )
        if self.name in STAGES:
            raise ValueError(f"stage {self.name} is declared twice")
        if unopened := sorted(set(self.fingerprints.values()) - set(self.inputs)):
            raise ValueError(
                f"stage {self.name}: fingerprints= names {', '.join(unopened)}, which is not among its inputs"
            )

    def _asset(self, function: Callable[..., Any]) -> dg.AssetsDefinition:
        configuration = run_configuration(self.name, self.settings, StageConfig if self.makes_artifact else EventConfig)
        one = dg.MaterializeResult
        returned = tuple[(one,) * len(self.parts)] if self.parts else one  # type: ignore[misc]  # read by Dagster

        @refuse_bad_input
        def asset(context: dg.AssetExecutionContext, config: configuration) -> returned:  # type: ignore[valid-type]
            results = tuple(self._run(function, context, config))
            return results if self.parts else results[0]

        in_pool = self.launches or self.computes
        shared: dict[str, Any] = {
            "group_name": self.group,
            "kinds": set(self.kinds),
            "owners": [OWNER],
            "code_version": self.version,
            "deps": [*self.inputs, *self.after],
            "tags": {"track": self.track, "compute": "training" if in_pool else "light"},
            "freshness_policy": WEEKLY if self.read_weekly else None,
            "automation_condition": self.automation,
        }
        step: dict[str, Any] = {
            "name": self.name,
            "pool": TRAINING_POOL if in_pool else None,
            "retry_policy": training.RETRIES if self.launches else None,
            "required_resource_keys": {"store", "tracking", "workspace", *(("launcher",) if self.launches else ())},
        }
        body = training.cancellable(asset) if self.launches else asset
        if self.parts:
            specs = [dg.AssetSpec(part, description=text, **shared) for part, text in self.parts.items()]
            return dg.multi_asset(specs=specs, **step)(body)
        description = inspect.cleandoc(function.__doc__ or "")
        return dg.asset(description=description, check_specs=list(self.check_specs), **shared, **step)(body)

    def _run(
        self, function: Callable[..., Any], context: dg.AssetExecutionContext, given: EventConfig
    ) -> Iterator[dg.MaterializeResult]:
        """Every asset of this stage, reused or built."""
        request = self._request(context, given)
        if not self.makes_artifact:
            yield function(request)
            return
        for asset in self.assets:
            part = replace(request, name=asset)
            identity = self._identity(part)

            def build(folder: Path, run: TrackedRun, part: Request[S] = part) -> Outcome:
                outcome: Outcome = function(Job(**vars(part), folder=folder, run=run))
                return outcome

            workdir = request.workspace.workdir(asset, identity.fingerprint) if self.launches else None
            yield materialise(
                context, request.store, request.tracking, identity, build, force=request.force, workdir=workdir
            )

    def _request(self, context: dg.AssetExecutionContext, given: EventConfig) -> Request[S]:
        store, tracking, workspace = (getattr(context.resources, one) for one in ("store", "tracking", "workspace"))
        spec = workspace.spec(context.partition_key)
        settings = resolve(self.settings, given, spec, self.name, self.defaults_of)
        registered = open_champion(tracking, store, self.champion, spec.name) if self.champion else None
        request = Request(
            name=self.name,
            settings=settings,
            spec=spec,
            inputs=upstream(context, store, *self.inputs),
            context=context,
            store=store,
            tracking=tracking,
            workspace=workspace,
            force=getattr(given, "force", False),
            registered=registered,
        )
        return replace(request, prepared=self.prepare(request)) if self.prepare else request

    def _identity(self, request: Request[S]) -> Identity:
        used = request.registered.inputs if request.registered else {}
        opened: Mapping[str, Artifact | str]
        opened = self.versions(request) if self.versions else {**request.inputs, **used}
        marked = {name: request.inputs[one].fingerprint for name, one in self.fingerprints.items()}
        inputs = {**opened, **marked}
        return Identity(request.name, request.dataset, self.version, self._configuration(request), inputs)

    def _configuration(self, request: Request[S]) -> dict[str, Any]:
        if self.config:
            return dict(self.config(request))
        precision = request.launcher.result_settings() if self.trains else {}
        extras = self.extras(request) if self.extras else {}
        return {**request.settings.model_dump(mode="json"), **precision, **extras}


stage = Stage
STAGES: dict[str, Stage[Any]] = {}
"""Every stage that has been declared, by its name."""


def refuse_bad_input(asset: F) -> F:
    """Turn `InputError` into a Dagster failure that is shown as one message and never retried. A run without a data
    set is bad input, too.
    """

    @functools.wraps(asset)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            for one in (*args, *kwargs.values()):
                if isinstance(one, dg.OpExecutionContext | dg.AssetExecutionContext) and not one.has_partition_key:
                    raise InputError("choose a data set (the partition) for this run")
            return asset(*args, **kwargs)
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    return wrapper  # type: ignore[return-value]


def check_declarations(stages: Mapping[str, Stage[Any]] = STAGES) -> None:
    """Compare the declarations with each other, once all modules are imported.

    Raises:
        ValueError: a stage depends on an asset that no stage makes, or opens one that keeps no artifact.
    """
    made = {asset: one for one in stages.values() for asset in one.assets}
    for one in stages.values():
        for name in (*one.inputs, *one.after):
            if name not in made:
                raise ValueError(f"stage {one.name}: input {name!r} is no asset of any stage")
        for name in one.inputs:
            if not made[name].makes_artifact:
                raise ValueError(f"stage {one.name}: input {name!r} keeps no artifact; name it in after=")


def settings_of(asset: str) -> type[Settings]:
    """The settings class of the stage that makes this asset."""
    return next(one.settings for one in STAGES.values() if asset in one.assets)
