"""What an asset is built from: the upstream artifacts, of this run or the latest, and their ancestors."""

import dagster as dg

from rarec.errors import InputError
from resources.artifacts.store import Artifact, ArtifactStore

TRACK_JOBS = ("raserec", "rella")
"""Jobs that build a whole track, each by the name of its track."""

AnyContext = dg.AssetExecutionContext | dg.AssetCheckExecutionContext


def upstream(context: AnyContext, store: ArtifactStore, *names: str) -> dict[str, Artifact]:
    """The artifacts of these assets for the current partition: from this run, otherwise the latest.

    Raises:
        InputError: one is missing, or was built from a different version of another one.
    """
    own = {}
    # Another run may materialise the same asset with other settings in the meantime; its result does not belong here.
    for record in context.instance.get_records_for_run(
        context.run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    ).records:
        if record.asset_key and record.partition_key == context.partition_key:
            own[record.asset_key.to_user_string()] = record
    found = {}
    for name in names:
        records = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(name), asset_partitions=[context.partition_key]), limit=1
        ).records
        if not records:
            raise InputError(
                f"{name} has not been materialised for {context.partition_key}; materialise it first"
                f"{_made_by(context, name)}"
            )
        materialization = own.get(name, records[0]).asset_materialization
        assert materialization is not None
        identity = str(materialization.metadata["fingerprint"].value)
        found[name] = store.open(name, context.partition_key, identity)
    for name, artifact in found.items():
        for other, version in artifact.manifest.inputs.items():
            if other in found and found[other].data_version != version:
                raise InputError(
                    f"the {name} of {context.partition_key} was made from another {other} than the current one; "
                    f"materialise {name} again{_made_by(context, name)}"
                )
    return found


def lineage(context: dg.AssetExecutionContext, store: ArtifactStore, root: str, *names: str) -> dict[str, Artifact]:
    """This asset's artifact for the current partition (from this run, otherwise the latest), and its ancestors with
    these names, as they were at that time. Later rebuilds of the ancestors do not matter.

    Raises:
        InputError: it has not been materialised, or an ancestor's artifact is no longer in the store.
    """
    found = upstream(context, store, root)
    waiting = [found[root]]
    while waiting:
        made_from = waiting.pop().manifest.inputs
        for name in made_from.keys() & (set(names) - found.keys()):
            artifact = store.with_content(
                name, context.partition_key, made_from[name], found[root].manifest.inputs.values()
            )
            if artifact is None:
                raise InputError(
                    f"the {name} from which the {root} of {context.partition_key} was made is no longer in the "
                    f"artifact store; materialise {root} again{_made_by(context, root)}"
                )
            found[name] = artifact
            waiting.append(artifact)
    if missing := sorted(set(names) - found.keys()):
        raise InputError(
            f"the {root} of {context.partition_key} does not record which {', '.join(missing)} it was made from; "
            f"materialise {root} again{_made_by(context, root)}"
        )
    return found


def _made_by(context: AnyContext, asset: str) -> str:
    """The jobs that build an asset, in brackets, from its tag `track`. Empty for assets of the model in use, because
    the job depends on the model.
    """
    key, graph = dg.AssetKey(asset), context.job_def.asset_layer.asset_graph
    if not graph.has(key) or graph.get(key).group_name == "operations":
        return ""
    track = graph.get(key).tags.get("track")
    jobs = [job for job in TRACK_JOBS if track in (job, "both")]
    if not jobs:
        return ""
    named = " or ".join(f"`{job}`" for job in jobs)
    return f" (job {named}: make run DATASET={context.partition_key} TRACK={jobs[0]})"
