import json

import numpy as np
import pytest
import torch
from callers_data import same_data, unchanged
from rella_toys import BASE, CPU, OUT_OF_MEMORY, toy_data
from torch.nn import functional as F

from rarec.data.ctr import draw
from rarec.errors import InputError
from rarec.rella import tuning
from rarec.rella.scoring import score
from rarec.rella.training_samples import draw_training_samples
from rarec.rella.tuning import TUNING, TuningObjective, TuningSettings, add_adapter, tune
from rarec.training.checkpoint import STATE

pytestmark = pytest.mark.usefixtures("single_process")

DATA = toy_data()
SHOTS = draw_training_samples(DATA.source.samples, 10, "mixed", 5)  # 20 prompts: two steps of eight and one of four
ALONE, TOGETHER = 64, 100_000  # tokens of a piece: less than two prompts have, more than all have


def objective_of(settings, model=None, shots=SHOTS, seed=5):
    model = add_adapter(DATA.model() if model is None else model, settings, seed)
    return TuningObjective(model, DATA.source, DATA.prompts, shots, DATA.answers, settings, seed, CPU)


def settings_of(**values):
    return TuningSettings(**{"dropout": 0.0, "batch_size": 8, "epochs": 3, "learning_rate": 0.01} | values)


def run(objective, folder, report=lambda **_: None):
    output = folder / "adapter"
    output.mkdir(exist_ok=True)
    return tune(objective, BASE, output, folder / "checkpoint", report)


@pytest.mark.parametrize(
    ("asked", "source", "expected"),
    [("auto", "scratch", "answers"), ("auto", "path:/model", "vocabulary"), ("vocabulary", "scratch", "vocabulary")],
)
def test_a_model_trained_here_is_tuned_over_the_answers(asked, source, expected):
    assert TuningSettings(loss_over=asked).for_model(source).loss_over == expected


def adapter(objective):
    return {name: p.detach().clone() for name, p in objective.model.named_parameters() if p.requires_grad}


def plain_training(settings, seed=5):
    """Loss by epoch and the adapter after the last one: one prompt at a time, all logits, torch's own Adam."""
    model = add_adapter(DATA.model(), settings, seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate)
    parts = DATA.source.rows(SHOTS.sample, SHOTS.retrieved)
    words = [DATA.answers.yes if liked else DATA.answers.no for liked in DATA.source.samples.label[SHOTS.sample]]
    losses, done, steps = [], 0, 3 * settings.epochs
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(parts)).tolist()
        total = 0.0
        for step in (order[:8], order[8:16], order[16:]):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - done / steps)
            optimizer.zero_grad()
            for row in step:
                ids = DATA.tokenizer(DATA.source.parts.text(parts[row]), return_tensors="pt")["input_ids"]
                loss = F.cross_entropy(model(input_ids=ids).logits[0, -1:], torch.tensor([words[row]]))
                (loss / len(step)).backward()
                total += float(loss.detach())
            optimizer.step()
            done += 1
        losses.append(total / len(parts))
    return losses, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_pieces_of_any_size_train_as_one_prompt_at_a_time(tmp_path):
    """1x8, 8x1 and recomputed activations, against a plain loop: losses, and the adapter that is left."""
    expected, weights = plain_training(settings_of())
    assert expected[-1] < expected[0] - 0.01  # the comparison spans real training
    for number, changed in enumerate(
        ({"piece_tokens": TOGETHER}, {"piece_tokens": ALONE}, {"gradient_checkpointing": True, "piece_tokens": 300})
    ):
        objective = objective_of(settings_of(patience=3, **changed))
        figures = iter([0.1, 0.2, 0.3])
        objective.validate = lambda figures=figures: {"AUC": next(figures)}  # the last epoch's weights stay
        objective.start_epoch(0)
        pieces = [len(step) for step, _ in objective.batches()]
        assert pieces == {TOGETHER: [1, 1, 1], ALONE: [8, 8, 4]}.get(objective.settings.piece_tokens, pieces)
        folder = tmp_path / str(number)
        folder.mkdir()
        history = run(objective, folder)["history"]
        assert [record["loss"] for record in history] == pytest.approx(expected, rel=1e-5)
        for name, value in adapter(objective).items():
            torch.testing.assert_close(value, weights[name.removeprefix("model.")], rtol=1e-3, atol=1e-4)


def test_pieces_hold_every_prompt_of_a_step_once_on_some_rank(monkeypatch):
    """And as many pieces on every rank: the idle ones count for nothing."""
    objective = objective_of(settings_of(batch_size=19, piece_tokens=200))  # the last step has a single prompt
    parts = DATA.source.rows(SHOTS.sample, SHOTS.retrieved)
    label = DATA.source.samples.label[SHOTS.sample]

    def told(prompts, answers):
        """Texts with their answers, by the tokens."""
        rows = zip(prompts.tokens, prompts.mask, answers, strict=True)
        return [(DATA.tokenizer.decode(t[m == 1], skip_special_tokens=True), int(a)) for t, m, a in rows]

    objective.start_epoch(1)
    steps = [step.tolist() for step in objective._steps]
    assert [len(step) for step in steps] == [19, 1]
    assert sorted(row for step in steps for row in step) == list(range(20))
    monkeypatch.setattr(tuning, "world_size", lambda: 2)
    seen, counts, idle = [[], []], [], 0
    for rank in (0, 1):
        monkeypatch.setattr(tuning, "rank", lambda rank=rank: rank)
        batches = list(objective.batches())
        assert [samples for _, samples in batches] == [19, 1]
        counts.append([len(pieces) for pieces, _ in batches])
        for number, (pieces, _) in enumerate(batches):
            for piece in pieces:
                assert piece.prompts.tokens.numel() <= 200
                if piece.weights.any():
                    assert (piece.weights == 1).all()
                    seen[number] += told(piece.prompts, piece.answers)
                else:
                    idle += 1
    assert counts[0] == counts[1]
    assert idle > 1  # the single prompt's step, and a step of uneven pieces
    texts = [DATA.source.parts.text(row) for row in parts]
    for step, got in zip(steps, seen, strict=True):
        expected = [(texts[row], DATA.answers.yes if label[row] else DATA.answers.no) for row in step]
        assert sorted(got) == sorted(expected)


def test_an_idle_piece_adds_neither_loss_nor_gradient():
    objective = objective_of(settings_of())
    loss, _ = objective.model(objective._piece(np.arange(1), weight=0.0))
    loss.backward()
    assert float(loss.detach()) == 0
    gradients = [p.grad for p in objective.model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_seed_decides_and_a_stopped_tuning_goes_on(tmp_path):
    """The order of prompts and the first weights follow the seed; dropout too, so that a resumed run ends alike."""
    settings = settings_of(dropout=0.3, epochs=2, patience=2, schedule="constant")
    found = {}
    for name, epochs, seed in (("whole", (2,), 5), ("resumed", (1, 2), 5), ("other", (2,), 6)):
        (tmp_path / name).mkdir()
        for most in epochs:
            objective = objective_of(settings.model_copy(update={"epochs": most}), seed=seed)
            summary = run(objective, tmp_path / name)
        found[name] = [[record["loss"] for record in summary["history"]], adapter(objective)]
    assert same_data(found["whole"], found["resumed"])
    assert found["whole"][0] != found["other"][0]
    record = json.loads((tmp_path / "other" / "adapter" / TUNING).read_text())
    assert (record["base"], record["seed"]) == (BASE, 6)
    assert TuningSettings(**record["settings"]) == settings


def test_first_weights_follow_the_seed_and_dropout_the_epoch():
    torch.manual_seed(1)
    models = [DATA.model() for _ in range(3)]
    first = []
    for model, seed in zip(models, (5, 5, 6), strict=True):
        torch.rand(seed + len(first))  # whatever was drawn before
        first.append(adapter(objective_of(settings_of(), model, seed=seed)))
    assert same_data(first[0], first[1])
    assert not same_data(first[0], first[2])
    bits = []
    objective = objective_of(settings_of())
    for epoch in (0, 1, 0):
        objective.start_epoch(epoch)
        bits.append(torch.rand(3))
    assert torch.equal(bits[0], bits[2])
    assert not torch.equal(bits[0], bits[1])


def test_validation_needs_both_answers():
    with pytest.raises(InputError, match=r"all 1 validation samples have the same label.*raise validation_prompts"):
        objective_of(settings_of(validation_prompts=2).model_copy(update={"validation_prompts": 1}))


@pytest.mark.parametrize(("mode", "retrieved"), [("recent", False), ("retrieved", True), ("mixed", True)])
def test_validation_asks_as_the_adapter_will_be_asked(mode, retrieved):
    settings = settings_of(validation_prompts=9)
    objective = objective_of(settings, shots=draw_training_samples(DATA.source.samples, 6, mode, 5))
    samples = draw(DATA.source.samples, "valid", 9, 5)
    assert len(samples) == 9
    rows = DATA.source.rows(samples, retrieved)
    assert np.array_equal(objective.validation_parts, rows)
    probability, _ = score(DATA.model(), DATA.prompts, rows, DATA.answers, CPU)  # a fresh adapter changes nothing
    liked = DATA.source.samples.label[samples]
    pairs = [(p > q) + 0.5 * (p == q) for p in probability[liked] for q in probability[~liked]]
    with unchanged(objective.model):
        figures = objective.validate()
    assert figures["AUC"] == pytest.approx(np.mean(pairs))
    assert figures["LogLoss"] == pytest.approx(-np.log(np.where(liked, probability, 1 - probability)).mean(), rel=1e-5)


def test_targets_that_the_model_lacks_are_named():
    with pytest.raises(
        InputError,
        match=r"targets: the language model has no linear layer named wq, wv; it has down_proj, gate_proj, k_proj, "
        r"lm_head, o_proj, q_proj, up_proj, v_proj$",
    ):
        add_adapter(DATA.model(), settings_of(targets=("wq", "q_proj", "wv")), 5)
    with pytest.raises(InputError, match=r"named q_proj; it has c_attn, c_fc, c_proj, lm_head$"):
        add_adapter(DATA.model("gpt2"), settings_of(targets=("q_proj",)), 5)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(tmp_path):
    run(objective_of(settings_of(epochs=1)), tmp_path)
    kept = (tmp_path / "checkpoint" / STATE).read_bytes()
    broken = DATA.model()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    objective = objective_of(settings_of(epochs=3), model=broken)
    message = r"adapter tuning: the loss is nan at epoch 2, step 3 of 3; lower learning_rate"
    with pytest.raises(InputError, match=message):
        run(objective, tmp_path)
    assert (tmp_path / "checkpoint" / STATE).read_bytes() == kept
    again = run(objective_of(settings_of(epochs=2)), tmp_path)  # it goes on from there
    assert [record["epoch"] for record in again["history"]] == [1, 2]


@pytest.mark.parametrize("full", OUT_OF_MEMORY)
def test_out_of_memory_says_what_to_lower(full, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "last_logits", full)
    objective = objective_of(settings_of(piece_tokens=TOGETHER))
    objective.start_epoch(0)
    longest = objective.lengths[objective._steps[0]].max()
    with pytest.raises(InputError, match=rf"out of memory with 8 prompts of up to {longest} tokens at once; lower pie"):
        run(objective, tmp_path)
