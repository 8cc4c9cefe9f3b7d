import gzip
import os
from pathlib import Path

import pytest
from places import TESTS

from rarec.data.spec import DatasetSpec, builtin_specs


@pytest.fixture(scope="session")
def samples() -> Path:
    """Tiny hand-made files in the published formats."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def specs() -> dict[str, DatasetSpec]:
    return builtin_specs()


@pytest.fixture
def amazon_folder(samples: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "amazon-beauty"
    folder.mkdir()
    for name in ("reviews_Beauty_5.json", "meta_Beauty.json"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((samples / "amazon" / name).read_bytes()))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("RAREC_DATA", TESTS.parent.parent / "shared" / "datasets"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set RAREC_DATA)")
    return folder
