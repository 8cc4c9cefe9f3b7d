import json

import numpy as np
import pytest
import torch
from callers_data import unchanged
from raserec_toys import QUICK, chain_sequences, random_sequences

from rarec.data.sequences import UserSequences, Windows
from rarec.errors import InputError
from rarec.metrics.ranking import ranking_table
from rarec.raserec import pretrain as pretrain_module
from rarec.raserec.encoders import load_encoder
from rarec.raserec.pretrain import PretrainJob, PretrainObjective, SameNextItem, pretrain, validation_metrics
from rarec.raserec.settings import PretrainSettings
from rarec.training import engine as engine_module
from rarec.training.fit import SUMMARY
from rarec.training.job import Place
from rarec.training.progress import ProgressReporter

CPU = torch.device("cpu")


def silent(**values):
    return None


@pytest.fixture(scope="module")
def sequences():
    return random_sequences([6, 1, 40, 9, 3, 0, 22, 4, 12, 2], n_items=14, seed=4)


def test_partners_share_the_next_item_and_all_are_drawn(sequences):
    prefixes = sequences.prefixes("train")
    with unchanged(sequences, prefixes):
        pairs = SameNextItem(sequences, prefixes)
        draws = np.stack([pairs.draw(np.random.default_rng(seed)) for seed in range(400)])
    targets = sequences.next_items(prefixes)
    alone = 0
    for column, (prefix, target) in enumerate(zip(prefixes, targets, strict=True)):
        others = set(prefixes[targets == target].tolist()) - {int(prefix)}
        drawn, counts = np.unique(draws[:, column], return_counts=True)
        if not others:
            assert drawn.tolist() == [prefix]  # its own partner
            alone += 1
            continue
        assert set(drawn.tolist()) == others
        expected = 400 / len(others)
        assert np.all(np.abs(counts - expected) < 5 * expected**0.5)  # uniform
    assert alone == sum(np.bincount(targets) == 1)


def test_lonely_targets_are_their_own_partner():
    sequences = random_sequences([5, 6], n_items=9, seed=0)
    sequences.items[:] = [0, 1, 2, 8, 8, 3, 2, 4, 5, 8, 8]
    pairs = SameNextItem(sequences, sequences.prefixes("train"))
    assert sequences.prefixes("train").tolist() == [0, 1, 5, 6, 7]  # next items 1, 2, 2, 4, 5
    assert pairs.draw(np.random.default_rng(0)).tolist() == [0, 5, 1, 6, 7]


def recorded(objective):
    """The windows of every step, as they are packed."""
    packed: list[Windows] = []
    original = objective.encoder.pack

    def pack(sequences, windows):
        packed.append(windows)
        return original(sequences, windows)

    objective.encoder.pack = pack
    return packed


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("contrast", [0.1, 0.0])
def test_an_epoch_holds_every_training_prefix_once_with_its_target(sequences, kind, contrast):
    settings = PretrainSettings(
        encoder=kind, dim=8, inner_dim=8, max_length=10, context_stride=3, batch_size=16, contrastive_weight=contrast
    )
    with unchanged(sequences):
        objective = PretrainObjective(sequences, settings, CPU)
        windows_of_steps = recorded(objective)
        orders = []
        for epoch in (0, 1, 0):
            windows_of_steps.clear()
            steps = objective.start_epoch(epoch)
            batches = list(objective.batches())
            assert len(batches) == len(windows_of_steps) == steps
            seen = []
            for (((packed, targets),), samples), windows in zip(batches, windows_of_steps, strict=True):
                prefixes = windows.prefixes()
                own, partners = prefixes[:samples], prefixes[samples:]
                assert len(packed.outputs) == len(prefixes)
                assert np.array_equal(targets.numpy(), sequences.next_items(own))
                if contrast:
                    assert np.array_equal(sequences.next_items(partners), targets.numpy())
                else:
                    assert len(partners) == 0
                assert samples <= 16 + 10
                seen.append(prefixes.tolist())
            train = sorted(p for step, (_, samples) in zip(seen, batches, strict=True) for p in step[:samples])
            assert train == sequences.prefixes("train").tolist()
            assert np.mean([samples for _, samples in batches[:-1]]) == pytest.approx(16, abs=5)
            orders.append(seen)
    assert orders[0] == orders[2]  # an epoch's order follows from the seed
    assert orders[0] != orders[1]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_every_step_without_overlap(sequences, ranks, monkeypatch):
    settings = PretrainSettings(dim=8, inner_dim=8, max_length=10, batch_size=16)

    def windows_of(rank, world):
        monkeypatch.setattr(engine_module, "rank", lambda: rank)
        monkeypatch.setattr(engine_module, "world_size", lambda: world)
        objective = PretrainObjective(sequences, settings, CPU)
        packed = recorded(objective)
        objective.start_epoch(0)
        samples = [samples for _, samples in objective.batches()]
        return packed, samples

    whole, samples = windows_of(0, 1)
    shares = [windows_of(rank, ranks) for rank in range(ranks)]
    for step, windows in enumerate(whole):
        assert all(share[1][step] == samples[step] for share in shares)  # all divide by the same number
        together = np.concatenate([share[0][step].prefixes() for share in shares])
        assert sorted(together.tolist()) == sorted(windows.prefixes().tolist())


def test_validation_is_the_full_ranking_of_the_validation_targets(sequences):
    objective = PretrainObjective(sequences, PretrainSettings(dim=8, inner_dim=8), CPU)
    with unchanged(sequences, objective.encoder):
        metrics = objective.validate()
    prefixes = sequences.prefixes("valid")
    queries = objective.encoder.encode(sequences, prefixes)
    unmasked, masked = [], []
    for query, prefix in zip(queries, prefixes, strict=True):
        user = sequences.user_of[prefix]
        scores = (objective.encoder.item_embedding @ query).tolist()
        target = sequences.items[prefix + 1]
        seen = set(sequences.items[sequences.offsets[user] : prefix + 1].tolist())
        ahead = [i for i, score in enumerate(scores) if score > scores[target]]
        unmasked.append(1 + len(ahead))
        masked.append(1 + len(set(ahead) - seen))
    assert metrics["NDCG@10"] == pytest.approx(ranking_table(np.array(unmasked))["NDCG@10"])
    assert metrics["HR@5"] == pytest.approx(ranking_table(np.array(unmasked))["HR@5"])
    assert metrics["masked_NDCG@10"] == pytest.approx(ranking_table(np.array(masked))["NDCG@10"])
    assert unmasked != masked
    perfect = objective.encoder.item_embedding.detach()[sequences.next_items(prefixes)]
    best = validation_metrics(sequences, lambda _: 1e3 * perfect, objective.encoder, objective.model)
    assert 0.5 < best["NDCG@10"] <= 1


def test_validation_reports_what_it_is_about(sequences):
    told = []
    objective = PretrainObjective(sequences, QUICK, CPU, report=lambda **values: told.append(values))
    assert told == []
    objective.validate()
    users = len(sequences.prefixes("valid"))
    assert [(values["stage"], values["step"], values["steps"]) for values in told] == [
        ("pre-training, validation: representations", 0, users),
        ("pre-training, validation: ranks", 0, users),
    ]


@pytest.mark.parametrize("lengths", [[3, 3, 3], [2, 2, 1], []], ids=str)
def test_sequences_too_short_to_train_or_validate_are_refused(lengths):
    with pytest.raises(InputError, match=r"nothing to train on or to validate with.*four or more interactions"):
        PretrainObjective(random_sequences(lengths, n_items=4), QUICK, CPU)


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(("kind", "epochs", "bound"), [("sasrec", 8, 0.9), ("gru4rec", 12, 0.9), ("bert4rec", 25, 0.7)])
def test_chains_are_learnt(tmp_path, kind, epochs, bound):
    """Of 60 items the next is certain; ranking at random gives NDCG@10 of 0.076."""
    settings = QUICK.model_copy(update={"encoder": kind, "epochs": epochs, "patience": epochs})
    sequences = chain_sequences()
    with unchanged(sequences, settings), ProgressReporter() as reporter:
        summary = pretrain(sequences, settings, tmp_path, tmp_path / "checkpoint", reporter.report)
    first, best = summary["history"][0], summary["history"][summary["best_epoch"]]
    assert bound < best["NDCG@10"] <= 1
    assert best["recommendation_loss"] < 0.7 * first["recommendation_loss"]
    assert best["loss"] == pytest.approx(best["recommendation_loss"] + 0.1 * best["contrastive_loss"], rel=1e-4)
    assert json.loads((tmp_path / "checkpoint" / SUMMARY).read_text()) == summary
    encoder = load_encoder(tmp_path, sequences.n_items)
    metrics = validation_metrics(
        sequences, lambda p: encoder.encode(sequences, sequences.prefixes("valid")[p]), encoder, encoder
    )
    assert metrics["NDCG@10"] == pytest.approx(best["NDCG@10"])  # the best weights were written


@pytest.mark.usefixtures("single_process")
def test_nothing_is_learnt_from_random_items(tmp_path):
    summary = pretrain(chain_sequences(shuffled=True), QUICK, tmp_path, tmp_path / "checkpoint", silent)
    assert 0.01 < summary["history"][summary["best_epoch"]]["NDCG@10"] < 0.2


@pytest.mark.usefixtures("single_process")
def test_interrupted_pretraining_ends_bitwise_equal(tmp_path, monkeypatch):
    settings = PretrainSettings(
        dim=8, inner_dim=8, layers=1, max_length=12, batch_size=64, learning_rate=5e-3, epochs=4, seed=3
    )
    assert settings.hidden_dropout == settings.attention_dropout == 0.5
    sequences = chain_sequences(users=60)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = pretrain(sequences, settings, tmp_path / "a", tmp_path / "a" / "checkpoint", silent)

    start_epoch = PretrainObjective.start_epoch

    def killed(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return start_epoch(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainObjective, "start_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(sequences, settings, tmp_path / "b", tmp_path / "b" / "checkpoint", silent)
    assert not (tmp_path / "b" / "encoder.safetensors").exists()
    torch.randn(7)  # the global generator stands elsewhere
    resumed = pretrain(sequences, settings, tmp_path / "b", tmp_path / "b" / "checkpoint", silent)
    assert [r["loss"] for r in resumed["history"]] == [r["loss"] for r in straight["history"]]
    one, other = (tmp_path / name / "encoder.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("single_process")
def test_the_seed_decides(tmp_path):
    sequences = chain_sequences(users=40)
    quick = QUICK.model_copy(update={"epochs": 1})
    losses = []
    for number, seed in enumerate((1, 1, 2)):
        settings = quick.model_copy(update={"seed": seed})
        summary = pretrain(sequences, settings, tmp_path, tmp_path / f"checkpoint-{number}", silent)
        losses.append(summary["history"][0]["loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.usefixtures("single_process")
def test_worker_entry(tmp_path):
    sequences = chain_sequences(users=30)
    folders = {name: tmp_path / name for name in ("sequences", "output", "checkpoint")}
    for folder in folders.values():
        folder.mkdir()
    sequences.save(folders["sequences"])
    settings = QUICK.model_copy(update={"epochs": 1})
    place = Place(output=folders["output"], checkpoint=folders["checkpoint"])
    with ProgressReporter() as reporter:
        pretrain_module.work(PretrainJob(settings=settings, sequences=folders["sequences"]), place, reporter)
    assert load_encoder(folders["output"]).settings.dim == settings.dim
    assert isinstance(UserSequences.load(folders["sequences"]), UserSequences)


def test_a_step_in_pieces_is_the_same_without_contrast_and_refused_with_it(sequences):
    settings = PretrainSettings(
        dim=8, inner_dim=8, max_length=10, batch_size=16, contrastive_weight=0, hidden_dropout=0, attention_dropout=0
    )
    losses = []
    for accumulation in (1, 3):
        objective = PretrainObjective(sequences, settings, CPU, accumulation)
        objective.start_epoch(0)
        batches = list(objective.batches())
        assert {len(pieces) for pieces, _ in batches} == {accumulation}
        losses.append([sum(float(objective.model(piece)[0].detach()) for piece in pieces) for pieces, _ in batches])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(InputError, match="accumulation is 3, but the contrastive loss compares all prefixes of a step"):
        PretrainObjective(sequences, settings.model_copy(update={"contrastive_weight": 0.1}), CPU, 3)
