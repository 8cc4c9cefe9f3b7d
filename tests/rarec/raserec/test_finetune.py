import json

import numpy as np
import pytest
import torch
from callers_data import unchanged
from lone_worker import lone_worker
from raserec_toys import QUICK, QUICK_FINETUNE, chain_sequences, random_sequences
from torch.nn import functional as F

from rarec.data.sequences import UserSequences
from rarec.errors import InputError
from rarec.raserec import finetune as finetune_module
from rarec.raserec.encoders import build_encoder, save_encoder
from rarec.raserec.finetune import (
    FinetuneJob,
    FinetuneObjective,
    Memories,
    Neighbours,
    augment,
    find_neighbours,
    finetune,
)
from rarec.raserec.pretrain import PretrainObjective, validation_metrics
from rarec.raserec.retrieval_module import load_module
from rarec.retrieval.memory import MemoryBank, Queries
from rarec.retrieval.settings import MemorySettings
from rarec.training import engine as engine_module
from rarec.training.dropout import DropoutBits
from rarec.training.fit import SUMMARY, FitSettings, fit
from rarec.training.job import Place
from rarec.training.progress import ProgressReporter

CPU = torch.device("cpu")


def silent(**values):
    return None


def bank_of(sequences, encoder, **settings):
    prefixes = sequences.prefixes("train")
    representations = encoder.encode(sequences, prefixes).numpy()
    return MemoryBank.build(sequences, prefixes, representations, "enc", MemorySettings(**settings))


@pytest.fixture(scope="module")
def untrained():
    """Sequences, a random encoder with visible differences, and its bank."""
    sequences = random_sequences([6, 1, 20, 9, 3, 0, 22, 4, 12, 2], n_items=14, seed=4)
    torch.manual_seed(0)
    encoder = build_encoder(14, QUICK, DropoutBits(0))
    torch.nn.init.normal_(encoder.item_embedding)
    return sequences, encoder.eval(), bank_of(sequences, encoder)


def new_objective(untrained, **changes):
    return FinetuneObjective(*untrained, QUICK_FINETUNE.model_copy(update=changes), CPU, silent)


@pytest.mark.parametrize(("beta", "channels"), [(1.0, (True, False)), (0.0, (False, True)), (0.5, (True, True))])
def test_only_weighed_channels_are_searched(untrained, beta, channels):
    sequences, encoder, bank = untrained
    embeddings = encoder.item_embedding.detach().numpy()
    settings = QUICK_FINETUNE.model_copy(update={"beta": beta})
    queries = Queries.of(sequences, bank.prefixes, bank.representations)
    with unchanged(sequences, queries, embeddings, bank.representations):
        found = find_neighbours(bank, queries, embeddings, settings)
    assert (found.users is not None, found.items is not None) == channels
    if found.users is not None:
        assert np.array_equal(found.users.numpy(), bank.similar_users(queries, 6))
    if found.items is not None:
        assert np.array_equal(found.items.numpy(), bank.suitable_items(queries, embeddings, 6))
    if found.users is not None and found.items is not None:
        assert not torch.equal(found.users, found.items)


@pytest.mark.parametrize("beta", [1.0, 0.0, 0.5])
def test_controls_search_nothing(untrained, beta, monkeypatch):
    sequences, encoder, bank = untrained
    queries = Queries.of(sequences, bank.prefixes, bank.representations)
    for name in ("similar_users", "suitable_items"):
        monkeypatch.setattr(MemoryBank, name, None)
    for control in ("random", "itself"):
        settings = QUICK_FINETUNE.model_copy(update={"beta": beta, "attend_to": control})
        found = find_neighbours(bank, queries, encoder.item_embedding.detach().numpy(), settings)
        assert (found.users is not None, found.items is not None) == (beta > 0, beta < 1)
        for ids in (found.users, found.items):
            if ids is not None and control == "random":
                assert np.array_equal(ids.numpy(), bank.drawn(queries, settings.memories, settings.seed))
            elif ids is not None:
                assert ids.shape == (len(queries), settings.memories)


def test_every_long_part_before_and_between_the_epochs_reports(untrained):
    told = []
    settings = QUICK_FINETUNE.model_copy(update={"beta": 0.5})
    objective = FinetuneObjective(*untrained, settings, CPU, lambda **values: told.append(values))
    steps = {}
    for values in told:
        steps.setdefault(values["stage"], []).append((values["step"], values["steps"]))
    memories, users = len(untrained[2]), len(untrained[0].prefixes("valid"))
    assert {stage: (found[0], found[-1]) for stage, found in steps.items()} == {
        "training neighbour lists: similar users": ((0, memories), (memories, memories)),
        "training neighbour lists: suitable items": ((0, memories), (memories, memories)),
        "representations of the validation queries": ((0, users), (0, users)),
        "validation neighbour lists: similar users": ((0, users), (users, users)),
        "validation neighbour lists: suitable items": ((0, users), (users, users)),
    }
    told.clear()
    objective.validate()
    assert [values["stage"] for values in told] == ["fine-tuning, validation: ranks"]


def test_neighbours_are_sliced_together():
    both = Neighbours(torch.arange(12).view(4, 3), -torch.arange(12).view(4, 3))
    rows = both[torch.tensor([2, 0])].to(CPU)
    assert rows.users is not None
    assert rows.items is not None
    assert rows.users.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert rows.items.tolist() == [[-6, -7, -8], [0, -1, -2]]
    assert Neighbours(None, None)[torch.tensor([0])] == Neighbours(None, None)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_an_epoch_holds_every_prefix_once_with_its_own_constants(untrained, ranks, monkeypatch):
    sequences, encoder, bank = untrained
    objective = new_objective(untrained, batch_size=16)
    prefixes = sequences.prefixes("train")
    by_hand = encoder.encode(sequences, prefixes)
    orders = []
    for epoch in (0, 1, 0):
        rows, samples_of_step = [], []
        for rank in range(ranks):
            monkeypatch.setattr(engine_module, "rank", lambda r=rank: r)
            monkeypatch.setattr(engine_module, "world_size", lambda: ranks)
            steps = objective.start_epoch(epoch)
            batches = list(objective.batches())
            assert len(batches) == steps == -(-len(prefixes) // 16)
            samples_of_step.append([samples for _, samples in batches])
            for ((queries, neighbours, targets),), _ in batches:
                for query, users, items, target in zip(
                    queries, neighbours.users, neighbours.items, targets, strict=True
                ):
                    (row,) = [r for r in range(len(prefixes)) if torch.equal(by_hand[r], query)]
                    assert target == sequences.items[prefixes[row] + 1]
                    for ids in (users, items):
                        own = bank.users[ids[ids >= 0]] == sequences.user_of[prefixes[row]]
                        assert np.all(bank.prefixes[ids[ids >= 0][torch.from_numpy(own)]] < prefixes[row])
                    rows.append(row)
        assert sorted(rows) == list(range(len(prefixes)))
        assert all(samples == samples_of_step[0] for samples in samples_of_step)
        assert sum(samples_of_step[0]) == len(prefixes)
        orders.append(rows)
    assert orders[0] == orders[2] != orders[1]


def test_loss_is_the_cross_entropy_of_the_augmented_queries(untrained):
    _sequences, encoder, bank = untrained
    objective = new_objective(untrained, dropout=0.0)
    objective.start_epoch(0)
    (batch,), samples = next(objective.batches())
    with unchanged(batch, encoder, bank.representations):
        loss, parts = objective.model(batch)
        loss.backward()
    queries, neighbours, targets = batch
    items = encoder.item_embedding.detach()
    hidden = objective.model.module(
        queries, torch.from_numpy(bank.representations), items[bank.targets], neighbours.users, neighbours.items
    )
    expected = F.cross_entropy(hidden @ items.T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert parts == {}
    assert len(targets) == samples
    assert all(parameter.grad is None for parameter in encoder.parameters())
    trained = {name for name, parameter in objective.model.named_parameters() if parameter.grad is not None}
    assert trained == {f"module.{name}" for name, _ in objective.model.module.named_parameters()}


def test_augment_in_parts_equals_one_pass_without_dropout(untrained):
    _, encoder, bank = untrained
    objective = new_objective(untrained, dropout=0.5)
    module = objective.model.module.train()
    memories = Memories(bank, encoder.item_embedding.detach())
    queries, neighbours = objective.queries, objective.neighbours
    with unchanged(queries, neighbours.users, module):
        whole = augment(module, queries, neighbours, memories)
        parts = augment(module, queries, neighbours, memories, batch=7)
    assert module.training
    assert not whole.requires_grad
    torch.testing.assert_close(whole, parts)
    module.eval()
    exact = module(queries, memories.representations, memories.next_items, neighbours.users, neighbours.items)
    torch.testing.assert_close(whole, exact.detach())


def test_validation_queries_are_the_validation_prefixes_and_see_training_memories_only(untrained):
    sequences, encoder, bank = untrained
    objective = new_objective(untrained)
    valid = sequences.prefixes("valid")
    assert torch.equal(objective.valid_queries, encoder.encode(sequences, valid))
    queries = Queries.of(sequences, valid, objective.valid_queries.numpy())
    assert np.array_equal(objective.valid_neighbours.users.numpy(), bank.similar_users(queries, 6))
    expected = validation_metrics(
        sequences,
        lambda p: augment(
            objective.model.module, objective.valid_queries, objective.valid_neighbours, objective.memories
        ),
        encoder,
        objective.model,
    )
    assert objective.validate() == expected


def test_more_memories_than_the_bank_holds_are_refused(untrained):
    size = len(untrained[2])
    with pytest.raises(InputError, match=f"memories = {size + 1} exceeds the {size} memories in the bank"):
        new_objective(untrained, memories=size + 1)


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory):
    """A chain encoder that still has something to learn; its bank and validation figure."""
    with lone_worker():
        sequences = chain_sequences()
        objective = PretrainObjective(sequences, QUICK.model_copy(update={"epochs": 3}), CPU)
        folder = tmp_path_factory.mktemp("stage1")
        fast = FitSettings(learning_rate=1e-2, epochs=3, patience=3)
        summary = fit(objective, fast, stage="s", output=folder, checkpoint=folder, report=silent)
    encoder = objective.encoder.eval()
    return sequences, encoder, bank_of(sequences, encoder), summary["history"][summary["best_epoch"]]["NDCG@10"]


def blank(**options):
    """Chain sequences, and an untrained encoder that tells last items apart but knows of nothing what follows."""
    sequences = chain_sequences(**options)
    torch.manual_seed(0)
    encoder = build_encoder(sequences.n_items, QUICK, DropoutBits(0)).eval()
    torch.nn.init.normal_(encoder.item_embedding)
    return sequences, encoder, bank_of(sequences, encoder)


def forgetful():
    """The same with memories that hold the next items of other ones."""
    sequences, encoder, bank = blank()
    bank.targets = np.random.default_rng(0).permutation(bank.targets)
    return sequences, encoder, bank


CHANCE = (0.02, 0.13)  # a random order of 60 items has 0.076


@pytest.mark.usefixtures("single_process", "_process_group")
@pytest.mark.parametrize(
    ("make", "beta", "low", "high"),
    [
        (blank, 1.0, 0.88, 0.99),
        (blank, 0.5, 0.87, 0.98),
        (blank, 0.0, 0.38, 0.56),  # suitable items alone
        *((forgetful, beta, *CHANCE) for beta in (1.0, 0.5, 0.0)),
        *((lambda: blank(shuffled=True), beta, *CHANCE) for beta in (1.0, 0.5)),  # nothing follows from anything
    ],
    ids=["memories-users", "memories-both", "memories-items", *["other-memories"] * 3, *["random-data"] * 2],
)
def test_what_the_encoder_does_not_know_comes_from_the_memories(tmp_path, make, beta, low, high):
    """Users in the same state chose what follows; without that, stage 2 gets no better than chance."""
    sequences, encoder, bank = make()
    valid = sequences.prefixes("valid")
    before = validation_metrics(sequences, lambda p: encoder.encode(sequences, valid[p]), encoder, encoder)
    assert before["NDCG@10"] < 0.13
    settings = QUICK_FINETUNE.model_copy(
        update={"alpha": 0.1, "beta": beta, "epochs": 8, "patience": 8, "learning_rate": 5e-3}
    )
    with (
        unchanged(sequences, encoder, bank.representations, bank.users, bank.prefixes, bank.targets, settings),
        ProgressReporter() as reporter,
    ):
        summary = finetune(sequences, encoder, bank, settings, tmp_path, tmp_path / "checkpoint", reporter.report)
    history = summary["history"]
    best = history[summary["best_epoch"]]["NDCG@10"]
    assert low < best < high
    assert history[-1]["loss"] < history[0]["loss"]
    assert json.loads((tmp_path / "checkpoint" / SUMMARY).read_text()) == summary
    assert best == pytest.approx(validated(tmp_path, sequences, encoder, bank, settings))


def validated(folder, sequences, encoder, bank, settings):
    """NDCG@10 of the module that was saved."""
    module = load_module(folder, "enc")
    queries = Queries.of(sequences, valid := sequences.prefixes("valid"), encoder.encode(sequences, valid).numpy())
    items = encoder.item_embedding.detach()
    neighbours = find_neighbours(bank, queries, items.numpy(), settings)
    represented = augment(module, torch.from_numpy(queries.vectors), neighbours, Memories(bank, items))
    return validation_metrics(sequences, lambda _: represented, encoder, encoder)["NDCG@10"]


@pytest.mark.usefixtures("single_process", "_process_group")
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_what_the_encoder_knows_is_kept(half_trained, tmp_path, beta):
    """It learnt from the same data that the memories hold: they add little, and take nothing away."""
    sequences, encoder, bank, before = half_trained
    settings = QUICK_FINETUNE.model_copy(update={"beta": beta})
    summary = finetune(sequences, encoder, bank, settings, tmp_path, tmp_path / "checkpoint", silent)
    assert 0.7 < before < 0.77
    assert before < summary["history"][summary["best_epoch"]]["NDCG@10"] < before + 0.02


@pytest.mark.usefixtures("single_process")
def test_interrupted_finetuning_ends_bitwise_equal(half_trained, tmp_path, monkeypatch):
    sequences, encoder, bank, _ = half_trained
    settings = QUICK_FINETUNE.model_copy(update={"dropout": 0.5})
    for name in "ab":
        (tmp_path / name).mkdir()

    def run(name):
        return finetune(sequences, encoder, bank, settings, tmp_path / name, tmp_path / name / "checkpoint", silent)

    straight = run("a")
    start_epoch = FinetuneObjective.start_epoch

    def killed(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return start_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneObjective, "start_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            run("b")
    resumed = run("b")
    assert [r["loss"] for r in resumed["history"]] == [r["loss"] for r in straight["history"]]
    one, other = (tmp_path / name / "module.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("single_process")
def test_worker_entry_and_stale_bank(half_trained, tmp_path):
    sequences, encoder, bank, _ = half_trained
    folders = {name: tmp_path / name for name in ("sequences", "encoder", "bank", "output", "checkpoint")}
    for folder in folders.values():
        folder.mkdir()
    sequences.save(folders["sequences"])
    save_encoder(encoder, folders["encoder"])
    bank.save(folders["bank"])
    settings = QUICK_FINETUNE.model_copy(update={"epochs": 1})
    job = FinetuneJob(
        settings=settings,
        sequences=folders["sequences"],
        encoder=folders["encoder"],
        encoder_fingerprint="enc",
        bank=folders["bank"],
    )
    place = Place(output=folders["output"], checkpoint=folders["checkpoint"])
    with ProgressReporter() as reporter:
        with pytest.raises(InputError, match="made by encoder enc and cannot serve encoder other"):
            finetune_module.work(job.model_copy(update={"encoder_fingerprint": "other"}), place, reporter)
        assert list(folders["output"].iterdir()) == []
        finetune_module.work(job, place, reporter)
    assert load_module(folders["output"], "enc").settings == settings
    assert np.array_equal(UserSequences.load(folders["sequences"]).items, sequences.items)
