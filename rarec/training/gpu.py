"""What a rank's GPU is doing, for progress reports."""

import contextlib
import sys
from typing import Any


def gpu_figures() -> dict[str, float]:
    """Memory in use on this rank's GPU (GiB, all processes) and its utilisation (%); empty without a GPU in use.

    Utilisation needs NVIDIA's management library (nvidia-ml-py) and is left out without it.
    """
    torch: Any = sys.modules.get("torch")  # a worker that has not imported it uses no GPU
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    figures = {"gpu_memory_gib": (total - free) / 2**30}
    with contextlib.suppress(ImportError, RuntimeError):  # no library, or one that the driver refuses
        figures["gpu_percent"] = float(torch.cuda.utilization())
    return figures
