import sys
from types import SimpleNamespace

from rarec.training import progress as progress_module
from rarec.training.gpu import gpu_figures
from rarec.training.progress import Progress, ProgressReporter


def fake_torch(used_gib=3, available=True, initialized=True, utilization=lambda: 87):
    cuda = SimpleNamespace(
        is_available=lambda: available,
        is_initialized=lambda: initialized,
        mem_get_info=lambda: ((80 - used_gib) * 2**30, 80 * 2**30),
        utilization=utilization,
    )
    return SimpleNamespace(cuda=cuda)


def no_library():
    raise ModuleNotFoundError("pynvml")


def test_figures_of_a_gpu_in_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    assert gpu_figures() == {"gpu_memory_gib": 3.0, "gpu_percent": 87.0}
    monkeypatch.setitem(sys.modules, "torch", fake_torch(utilization=no_library))
    assert gpu_figures() == {"gpu_memory_gib": 3.0}


def test_no_figures_without_one(monkeypatch):
    for torch in (fake_torch(available=False), fake_torch(initialized=False)):
        monkeypatch.setitem(sys.modules, "torch", torch)
        assert gpu_figures() == {}
    monkeypatch.delitem(sys.modules, "torch")
    assert gpu_figures() == {}


def test_progress_of_rank_0_holds_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    monkeypatch.delenv("DAGSTER_PIPES_CONTEXT", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    sent = []
    monkeypatch.setattr(progress_module, "_print", sent.append)
    with ProgressReporter() as reporter:
        reporter.report(stage="s", hr=0.5)
    assert sent == [Progress("s", metrics={"hr": 0.5, "gpu_memory_gib": 3.0, "gpu_percent": 87.0})]
