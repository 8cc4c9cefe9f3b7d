import uuid

import pytest

from resources.artifacts.store import ArtifactStore


@pytest.fixture(params=["local", "file url", "remote"])
def store(request, tmp_path):
    root = {
        "local": str(tmp_path / "store"),
        "file url": f"file://{tmp_path / 'store'}",
        "remote": f"memory://{uuid.uuid4().hex}",
    }[request.param]
    return ArtifactStore(root=root, cache=str(tmp_path / "cache"))


@pytest.fixture
def local_store(tmp_path):
    return ArtifactStore(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))


@pytest.fixture
def remote_store(tmp_path):
    return ArtifactStore(root=f"memory://{uuid.uuid4().hex}", cache=str(tmp_path / "cache"))
