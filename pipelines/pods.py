"""Kubernetes: each step in its own pod, if RAREC_POD_GPUS is set."""

from collections.abc import Iterable

import dagster as dg

from assets.framework.stage import TRAINING_POOL
from rarec.errors import InputError
from resources.settings import Installation


def step_executor(installation: Installation, assets: Iterable[dg.AssetsDefinition]) -> dg.ExecutorDefinition | None:
    """An executor that starts one pod per step; only steps that train request GPUs. None means Dagster's default.

    Raises:
        InputError: RAREC_POD_GPUS is set and dagster-k8s is not installed.
    """
    if not installation.pod_gpus:
        return None
    try:
        from dagster_k8s import k8s_job_executor
    except ImportError as error:
        raise InputError(
            "RAREC_POD_GPUS is set, but dagster-k8s is not installed. Install rarec[kubernetes]."
        ) from error
    resources = {"limits": {"nvidia.com/gpu": str(installation.pod_gpus)}}
    steps = [asset.op.name for asset in assets if asset.op.pool == TRAINING_POOL]
    executor: dg.ExecutorDefinition = k8s_job_executor.configured(
        {"per_step_k8s_config": {step: {"container_config": {"resources": resources}} for step in steps}}
    )
    return executor
