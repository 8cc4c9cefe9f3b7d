from importlib import metadata

from assets.framework.mlflow_models import pinned


def test_requirements_are_the_versions_in_use_without_local_tags(monkeypatch):
    def version(name):
        if name == "faiss-gpu":
            raise metadata.PackageNotFoundError
        return {"torch": "2.9.0+cpu", "numpy": "2.3.4"}[name]

    monkeypatch.setattr(metadata, "version", version)
    assert pinned("torch", "numpy", "faiss-gpu") == ["torch==2.9.0", "numpy==2.3.4", "faiss-gpu"]
