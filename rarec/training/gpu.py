"""Figures of a rank's GPU for progress reports."""

import contextlib
import sys
from typing import Any


def gpu_figures() -> dict[str, float]:
    """Memory in use on this rank's GPU (GiB, by all processes) and its utilisation (%); empty if it uses none.

    Utilisation needs NVIDIA's management library (nvidia-ml-py); without it, the figure is left out.
    """
    torch: Any = sys.modules.get("torch")  # a worker that did not import it uses no GPU
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    figures = {"gpu_memory_gib": (total - free) / 2**30}
    with contextlib.suppress(ImportError, RuntimeError):  # the library is missing, or the driver refuses it
        figures["gpu_percent"] = float(torch.cuda.utilization())
    return figures
