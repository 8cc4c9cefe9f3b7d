"""On Kubernetes each step has a pod of its own."""

import sys
from types import SimpleNamespace

import pytest
from installations import installation

from pipelines.definitions import build_defs
from rarec.errors import InputError


def test_pods_are_asked_for_gpus_where_they_train(tmp_path, monkeypatch):
    home = installation(tmp_path)
    assert build_defs(home).executor is None
    taken = []
    fake = SimpleNamespace(k8s_job_executor=SimpleNamespace(configured=lambda settings: taken.append(settings)))
    monkeypatch.setitem(sys.modules, "dagster_k8s", fake)
    build_defs(home.model_copy(update={"pod_gpus": 2}))
    graph = build_defs(home).resolve_asset_graph()
    names = {key.to_user_string() for key in graph.materializable_asset_keys}
    steps = {build_defs(home).resolve_assets_def(name).op for name in names}
    training = {step.name for step in steps if step.pool == "training"}
    limits = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "2"}}}}
    assert taken == [{"per_step_k8s_config": dict.fromkeys(training, limits)}]
    assert {"raserec_pretrained", "lora_checkpoint"} <= training
    monkeypatch.setitem(sys.modules, "dagster_k8s", None)
    with pytest.raises(InputError, match=r"RAREC_POD_GPUS is set, but dagster-k8s is not installed. Install"):
        build_defs(home.model_copy(update={"pod_gpus": 2}))
