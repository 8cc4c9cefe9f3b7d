"""The recommender as an MLflow model: it gets what it reads, and no user ids."""

import errno
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest

from assets.raserec.finetuned import log_recommender
from rarec.data.sequences import UserSequences
from rarec.raserec.encoders import build_encoder, save_encoder
from rarec.raserec.recommender import Recommender, recommend_histories
from rarec.raserec.retrieval_module import RetrievalAugmentedModule, save_module
from rarec.raserec.settings import FinetuneSettings, PretrainSettings
from rarec.retrieval.memory import MemoryBank
from rarec.retrieval.settings import MemorySettings
from rarec.training.dropout import DropoutBits

IDENTITY = "e" * 32
ITEMS = [f"film-{number}" for number in range(30)]
USERS = [f"somebody-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def made_of(tmp_path_factory):
    """Encoder, module, item table, and both kinds of bank, as the assets write them."""
    root = tmp_path_factory.mktemp("artifacts")
    folders = {name: root / name for name in ("encoder", "module", "items", "memory_bank", "refreshed_memory")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        (folder / "history.json").write_text("[]")  # as trainings leave
    items = np.random.default_rng(0).integers(0, len(ITEMS), 12 * 9)
    sequences = UserSequences(np.arange(0, 12 * 9 + 1, 9), items, np.arange(12 * 9), len(ITEMS))
    encoder = build_encoder(
        len(ITEMS), PretrainSettings(dim=8, inner_dim=8, layers=1, heads=1, max_length=8), DropoutBits()
    ).eval()
    save_encoder(encoder, folders["encoder"])
    settings = FinetuneSettings(memories=3, heads=1, inner_dim=8)
    save_module(RetrievalAugmentedModule(8, settings, DropoutBits()), 8, IDENTITY, folders["module"])
    pd.DataFrame({"item_id": ITEMS, "title": ITEMS}).to_parquet(folders["items"] / "items.parquet")
    prefixes = sequences.prefixes("train")
    vectors = encoder.encode(sequences, prefixes).cpu().numpy()
    bank = MemoryBank.build(sequences, prefixes, vectors, IDENTITY, MemorySettings())
    bank.save(folders["memory_bank"])
    bank.save(folders["refreshed_memory"])
    sequences.save(folders["refreshed_memory"])
    pd.DataFrame({"user_id": USERS}).to_parquet(folders["refreshed_memory"] / "users.parquet")
    return folders


@pytest.mark.parametrize(
    ("kind", "links"), [("memory_bank", True), ("refreshed_memory", True), ("refreshed_memory", False)]
)
def test_the_logged_model_holds_no_user_and_recommends(made_of, tmp_path, monkeypatch, kind, links):
    if not links:  # as on some network disks
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))

    class Run:
        """Saves where MLflow would."""

        def log_pyfunc(self, name, model_file, files, requirements, **options):
            mlflow.pyfunc.save_model(
                tmp_path / name,
                python_model=str(model_file),
                artifacts={key: str(path) for key, path in files.items()},
                pip_requirements=requirements,
                **options,
            )
            return str(tmp_path / name)

    encoder = SimpleNamespace(path=made_of["encoder"], fingerprint=IDENTITY)
    items = SimpleNamespace(path=made_of["items"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    uri = log_recommender(Run(), encoder, made_of[kind], made_of["module"], items, scratch)
    assert list(scratch.iterdir()) == []
    artifacts = Path(uri) / "artifacts"
    files = [path for path in artifacts.rglob("*") if not path.is_dir()]
    assert not any(path.is_symlink() for path in files)  # what they lead to may go
    assert sorted(path.relative_to(artifacts).as_posix() for path in files) == [
        "bank/bank.json", "bank/index.faiss", "bank/known_at.npy", "bank/prefixes.npy", "bank/representations.npy",
        "bank/targets.npy", "bank/users.npy",
        "encoder/encoder.json", "encoder/encoder.safetensors",
        "items/items.parquet",
        "module/module.json", "module/module.safetensors",
    ]  # fmt: skip
    assert not [path for path in files if b"somebody" in path.read_bytes()]
    history = [3, 7, 11]
    got = mlflow.pyfunc.load_model(uri).predict(
        pd.DataFrame({"history": [[ITEMS[item] for item in history]]}), params={"top_n": 5}
    )
    model = Recommender.load(made_of["encoder"], made_of[kind], made_of["module"], IDENTITY)
    ((items, scores),) = recommend_histories(model, [history], 5)
    assert got["items"][0] == [ITEMS[item] for item in items]
    np.testing.assert_allclose(got["scores"][0], scores, rtol=1e-5)
