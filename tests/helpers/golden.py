"""What `tests/data/golden.json` holds of the graph, and how a run is compared with it.

The file was recorded before stages were declared by `@stage`, and changes only on purpose. `python
tests/helpers/golden.py` writes today's definitions into it, a new asset's too; read the diff before you commit it.
"""

import json
from pathlib import Path

import dagster as dg
import mlflow
from places import TESTS

FILE = TESTS / "data" / "golden.json"
GOLDEN = json.loads(FILE.read_text())
WIDTH = 118


def unlike_golden(defs: dg.Definitions) -> dict[str, dict]:
    """Asset -> what of its definition differs from the recorded one, as (recorded, now)."""
    now = definitions(defs)
    recorded = {name: one["definition"] for name, one in GOLDEN["assets"].items()}
    differing = {}
    for name in sorted(now.keys() | recorded.keys()):
        before, after = recorded.get(name, {}), now.get(name, {})
        keys = before.keys() | after.keys()
        if found := {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}:
            differing[name] = found
    return differing


def definitions(defs: dg.Definitions) -> dict[str, dict]:
    """What Dagster knows of each asset, as plain values."""
    found = {}
    for spec in defs.resolve_all_asset_specs():
        name = spec.key.to_user_string()
        op = defs.resolve_assets_def(name).op
        condition, freshness = spec.automation_condition, spec.freshness_policy
        found[name] = {
            "group": spec.group_name,
            "kinds": sorted(spec.kinds),
            "owners": list(spec.owners),
            "code_version": spec.code_version,
            "tags": {key: value for key, value in sorted(spec.tags.items()) if not key.startswith("dagster/kind")},
            "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            "step": op.name,
            "pool": op.pool,
            "retries": op.retry_policy.max_retries if op.retry_policy else 0,
            "automation": condition.get_node_unique_id(parent_unique_id=None, index=None, target_key=None)
            if condition
            else None,
            "freshness_days": [freshness.fail_window.days, freshness.warn_window.days] if freshness else None,
            "config": sorted(op.config_schema.config_type.fields),
            "checks": [],
        }
    for key in sorted(defs.resolve_asset_graph().asset_check_keys, key=str):
        found[key.asset_key.to_user_string()]["checks"].append(key.name)
    return found


def check_keys(plant, result: dg.ExecuteInProcessResult) -> None:
    """Every asset that this run built tells what it told before: metadata, and its MLflow run's tags and parameters."""
    client = mlflow.MlflowClient(plant.home.tracking_uri)
    for event in result.get_asset_materialization_events():
        name, told = event.asset_key.to_user_string(), event.materialization.metadata
        if told.get("reused", dg.MetadataValue.bool(False)).value or name not in GOLDEN["assets"]:
            continue
        recorded = GOLDEN["assets"][name].get("keys")
        if recorded is None:
            continue
        _check(f"metadata of {name}", recorded["dagster"], set(told))
        if "mlflow_run" in told:
            run = client.get_run(Path(str(told["mlflow_run"].value)).name).data
            _check(f"MLflow parameters of {name}", recorded["params"], set(run.params))
            tags = {tag for tag in run.tags if not tag.startswith("mlflow.")}
            assert tags == set(recorded["tags"]), f"MLflow tags of {name}"


def _check(what: str, recorded: dict[str, list[str]], keys: set[str]) -> None:
    keys = {"trials.*" if key.startswith("trials.") else key for key in keys}
    always, sometimes = set(recorded["always"]), set(recorded["sometimes"])
    assert always <= keys, f"{what}: missing {sorted(always - keys)}"
    assert keys <= always | sometimes, f"{what}: new {sorted(keys - always - sometimes)}"


def _text(value, indent=0) -> str:
    """JSON on as few lines as fit the width."""
    pad, flat = " " * indent, json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(flat) + indent < WIDTH or not value or not isinstance(value, dict | list):
        return flat
    if isinstance(value, dict):
        lines = [f"{pad} {json.dumps(key)}: {_text(value[key], indent + 1)}" for key in sorted(value)]
        return "{\n" + ",\n".join(lines) + f"\n{pad}}}"
    if not all(isinstance(one, str) for one in value):
        return "[\n" + ",\n".join(f"{pad} {_text(one, indent + 1)}" for one in value) + f"\n{pad}]"
    lines = [""]
    for word in value:
        word = json.dumps(word, ensure_ascii=False)
        if len(lines[-1]) + len(word) + indent > WIDTH - 4:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{word}"
    return "[\n" + ",\n".join(f"{pad} {line}" for line in lines) + f"\n{pad}]"


if __name__ == "__main__":
    from pipelines.definitions import defs

    for name, definition in definitions(defs).items():
        GOLDEN["assets"].setdefault(name, {})["definition"] = definition
    FILE.write_text(_text(GOLDEN) + "\n")
