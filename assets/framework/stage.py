"""How an asset is declared: once, by `@stage`.

The declaration names group, code version, settings, inputs and kinds. Everything else follows from it: the run
configuration, the dependencies, the upstream artifacts that are opened, the identity, reuse, the build lock, retries,
cancellation, tags and owners, and the registry `STAGES`, from which the configuration reference is generated. The
decorated function holds the science: it gets a `Job`, fills ``job.folder`` and returns an `Outcome`.

Read on in `reuse` (an artifact is built once), `lineage` (what is opened upstream) and `training` (workers).
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import dagster as dg

from assets.framework import training
from assets.framework.champion import Champion, open_champion
from assets.framework.code_references import code_of
from assets.framework.configuration import (
    EventConfig,
    StageConfig,
    in_force,
    make_settings,
    resolve,
    run_configuration,
)
from assets.framework.lineage import upstream
from assets.framework.refusals import refuse_bad_input
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
"""Track of each group, for searching assets in Dagster (`tag:track=rella`). Stages of other groups set `track`."""


@dataclass(frozen=True)
class Request(Generic[S]):
    """A request for a stage's artifact, before it is known whether it has to be built.

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
        """The launcher of stages that train or score."""
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

    def building(self, folder: Path, run: TrackedRun) -> "Job[S]":
        """This request while it is built."""
        return Job(**vars(self), folder=folder, run=run)


@dataclass(frozen=True)
class Job(Request[S]):
    """A build in progress: the artifact's ``folder`` to fill, and the MLflow ``run`` that records it."""

    folder: Path = field(kw_only=True)
    run: TrackedRun = field(kw_only=True)

    @property
    def workdir(self) -> Path:
        """Working folder of stages that train or score; later attempts reuse it."""
        return self.workspace.workdir(self.name, self.run.fingerprint)

    def train(self, job: WorkerJob, output: Path | None = None) -> dict[str, Any] | None:
        """Run a worker and return its training's summary (`rarec.training.fit`), if it leaves one.

        An existing checkpoint is used.

        Args:
            output: the folder it writes to. Default: the artifact's.
        """
        return training.train(self.context, self.launcher, self.workdir, self.run, job, output or self.folder)

    def train_one(self, name: str, params: Mapping[str, Any], job: WorkerJob, figures: Sequence[str]) -> Outcome:
        """Run one of several trainings for this artifact: in a folder of its name, and in a nested MLflow run.

        Args:
            params: of the nested run.
            figures: validation figures of the best epoch.
        """
        output = self.folder / name
        output.mkdir()
        with self.run.nested(name, params) as run:
            summary = training.train(self.context, self.launcher, self.workdir / name, run, job, output)
            outcome = training.training_outcome(run, summary, figures, figures)
            run.log_metrics(outcome.metrics)
        return outcome


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """A declaration, which decorates the function that builds: ``function(job: Job) -> Outcome``.

    Attributes:
        shown: settings that a person changes, which the launchpad shows with the data set's values.
        inputs: assets that are opened upstream; they are dependencies and, unless ``versions`` says otherwise, part of
            the identity.
        after: further dependencies, such as those read through a registry.
        name: of the asset, if it differs from the function's.
        track: `raserec`, `rella` or `both`, if the group does not imply it.
        champion: track whose champion is opened through the registry as ``job.champion``; unless ``versions`` says
            otherwise, its artifacts are part of the identity.
        trains: launches workers: adds the training pool, retries, cancellation, the build lock and the launcher.
        precision: whether the precision of training is part of the identity; False for workers that only run inference.
        computes: uses the training pool, without workers.
        makes_artifact: False: the function gets the `Request` and returns a `dg.MaterializeResult` of its own.
        defaults_of: another stage whose defaults in a data set's file apply here too.
        prepare: function that looks up what the identity needs and refuses bad input; its result is ``job.prepared``.
        fingerprints: name in the identity -> input whose fingerprint counts, not only its content.
        versions: the parts of the inputs that belong to the identity, instead of all inputs.
        extras: what belongs to the identity's configuration besides the settings.
        config: the identity's configuration instead of the settings.
        parts: asset -> description, for a stage that materialises several assets; ``job.name`` says which.
        read_weekly: it is read every week, so Dagster shows when it is overdue.
        check_specs: checks that the function evaluates itself.
    """

    group: str
    version: str
    kinds: Collection[str]
    settings: type[S] = Settings  # type: ignore[assignment]
    shown: Sequence[str] = ()
    inputs: Sequence[str] = ()
    after: Sequence[str] = ()
    name: str = ""
    track: str = ""
    champion: str = ""
    trains: bool = False
    precision: bool | Callable[[Request[S]], bool] = True
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
        declared._check(function)
        asset = declared._asset(function)
        STAGES[declared.name] = declared
        return asset

    @property
    def assets(self) -> tuple[str, ...]:
        """The assets that it materialises."""
        return tuple(self.parts or (self.name,))

    def _check(self, function: Callable[..., Any]) -> None:
        faults = [message for wrong, message in self._contradictions(function) if wrong]
        if faults:
            raise ValueError(f"stage {self.name}: {'; '.join(faults)}")

    def _contradictions(self, function: Callable[..., Any]) -> Iterator[tuple[object, str]]:
        yield not self.track, f"group {self.group!r} has no track; set track=, or add the group to TRACK_OF_GROUP"
        taken = {asset for one in STAGES.values() for asset in (one.name, *one.assets)}
        for name in sorted({self.name, *self.assets} & taken):
            yield True, f"{name} is declared twice"
        for name in sorted(set(self.fingerprints.values()) - set(self.inputs)):
            yield True, f"fingerprints= names {name}, which is not among its inputs"
        for name in sorted(set(self.fingerprints) & set(self.inputs)):
            yield True, f"fingerprints= would replace the data version of {name}; give it another name"
        for name in sorted(set(self.shown) - set(self.settings.model_fields)):
            yield True, f"shown= names {name}, which is none of its settings"
        for name in sorted(set(self.inputs) & set(self.after)):
            yield True, f"{name} is in inputs= and after="
        yield "force" in self.settings.model_fields, "its settings have a field `force`, which every artifact's run has"
        yield self.config and self.extras, "config= and extras=; config= is the whole configuration"
        yield self.parts and (self.trains or self.check_specs), "parts= go neither with trains= nor with check_specs="
        identity = (self.versions, self.extras, self.config, self.fingerprints, self.parts, self.trains)
        yield not self.makes_artifact and any(identity), "makes_artifact=False, but an identity, parts or workers"
        yield not self.parts and not function.__doc__, "no docstring, which Dagster shows as its description"

    def _asset(self, function: Callable[..., Any]) -> dg.AssetsDefinition:
        configuration = run_configuration(self.name, self.settings, StageConfig if self.makes_artifact else EventConfig)
        one = dg.MaterializeResult
        returned = tuple[(one,) * len(self.parts)] if self.parts else one  # type: ignore[misc]  # read by Dagster

        @refuse_bad_input
        def asset(context: dg.AssetExecutionContext, config: configuration) -> returned:  # type: ignore[valid-type]
            results = tuple(self._run(function, context, config))
            return results if self.parts else results[0]

        in_pool = self.trains or self.computes
        shared: dict[str, Any] = {
            "group_name": self.group,
            "kinds": set(self.kinds),
            "owners": [OWNER],
            "code_version": self.version,
            "deps": [*self.inputs, *self.after],
            "tags": {"track": self.track, "compute": "training" if in_pool else "light"},
            "freshness_policy": WEEKLY if self.read_weekly else None,
            "automation_condition": self.automation,
            "metadata": code_of(function),
        }
        step: dict[str, Any] = {
            "name": self.name,
            "pool": TRAINING_POOL if in_pool else None,
            "retry_policy": training.RETRIES if self.trains else None,
            "required_resource_keys": {"store", "tracking", "workspace", *(("launcher",) if self.trains else ())},
        }
        body = training.cancellable(asset) if self.trains else asset
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
        settings = in_force(request.settings, request.spec, self.name, self.defaults_of)
        for asset in self.assets:
            part = replace(request, name=asset)
            identity = self._identity(part)

            def build(folder: Path, run: TrackedRun, part: Request[S] = part) -> Outcome:
                outcome: Outcome = function(part.building(folder, run))
                return outcome

            workdir = request.workspace.workdir(asset, identity.fingerprint) if self.trains else None
            yield materialise(
                context, request.store, request.tracking, identity, build,
                force=request.force, workdir=workdir, settings=settings,
            )  # fmt: skip

    def _request(self, context: dg.AssetExecutionContext, given: EventConfig) -> Request[S]:
        store, tracking, workspace = (getattr(context.resources, one) for one in ("store", "tracking", "workspace"))
        spec = workspace.spec(context.partition_key)
        check_overrides(spec)
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
        own = self.config(request) if self.config else request.settings.model_dump(mode="json")
        counts = self.precision(request) if callable(self.precision) else self.precision
        precision = request.launcher.result_settings() if self.trains and counts else {}
        extras = self.extras(request) if self.extras else {}
        return {**own, **precision, **extras}


stage = Stage
STAGES: dict[str, Stage[Any]] = {}
"""Every stage that has been declared, by its name."""


def check_declarations(stages: Mapping[str, Stage[Any]] = STAGES) -> None:
    """Check the declarations against each other, once all modules are imported.

    Raises:
        ValueError: a stage depends on an asset that no stage builds, opens one that keeps no artifact, or names
            an unknown track or stage.
    """
    tracks = {
        *TRACK_OF_GROUP.values(),
        *(name.removesuffix("_champion") for name in stages if name.endswith("_champion")),
    }
    made = {asset: one for one in stages.values() for asset in one.assets}
    for one in stages.values():
        for name in (*one.inputs, *one.after):
            if name not in made:
                raise ValueError(f"stage {one.name}: no stage builds the input {name!r}")
        for name in one.inputs:
            if not made[name].makes_artifact:
                raise ValueError(f"stage {one.name}: input {name!r} keeps no artifact; name it in after=")
        if one.defaults_of and one.defaults_of not in stages:
            raise ValueError(f"stage {one.name}: defaults_of={one.defaults_of!r} is no stage")
        for parameter, track in (("track", one.track), ("champion", one.champion or one.track)):
            if track not in tracks:
                raise ValueError(
                    f"stage {one.name}: {parameter}={track!r} is no track; there are {', '.join(sorted(tracks))}"
                )


def stage_of(asset: str) -> Stage[Any]:
    """The stage that builds this asset."""
    return next(one for one in STAGES.values() if asset in one.assets)


def check_overrides(spec: DatasetSpec) -> None:
    """Refuse defaults for stages that have no settings, and values that the stage's settings refuse."""
    known = {one.name: one.settings for one in STAGES.values() if one.makes_artifact and one.settings.model_fields}
    for name, values in spec.overrides.items():
        if name not in known:
            raise InputError(
                f"{spec.name}.toml: [overrides.{name}]: no such stage; stages with settings: {', '.join(known)}"
            )
        make_settings(known[name], values, f"{spec.name}.toml: [overrides.{name}]")
