import numpy as np
import pytest
import torch
from callers_data import unchanged
from raserec_oracles import gradients, plain_pretraining_loss, plain_representations
from raserec_toys import NO_DROPOUT, SMALL, random_sequences

from rarec.data.sequences import Windows, single_windows
from rarec.errors import InputError
from rarec.raserec.encoders import BERT4Rec, GRU4Rec, SASRec, _Attention, build_encoder, load_encoder, save_encoder
from rarec.raserec.pretrain import PretrainLoss
from rarec.raserec.settings import EncoderSettings
from rarec.training.dropout import DropoutBits

KINDS = ["sasrec", "gru4rec", "bert4rec"]
ITEMS = 11


@pytest.fixture(scope="module")
def sequences():
    """Users of 1 to 20 interactions: windows shorter than, equal to and longer than a maximum length of 7."""
    return random_sequences([4, 1, 20, 7, 9, 2, 8], n_items=ITEMS, seed=2)


def new_encoder(kind, double=True, **changes):
    torch.manual_seed(1)
    encoder = build_encoder(ITEMS, EncoderSettings(encoder=kind, **{**SMALL, **changes}), DropoutBits(3))
    for name, parameter in encoder.named_parameters():  # fresh biases and norms would hide mistakes
        torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.4)
    return encoder.double() if double else encoder


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_equals_reading_every_prefix_on_its_own(sequences, kind, stride):
    encoder = new_encoder(kind, context_stride=stride)
    everything = np.arange(len(sequences.items))
    with unchanged(sequences, everything, encoder):
        got = encoder.encode(sequences, everything)
        assert torch.equal(got, encoder.encode(sequences, everything))
    assert got.dtype == torch.float64
    expected = plain_representations(encoder, sequences, everything)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-10, atol=1e-12)
    assert expected.std(0).min() > 0.05  # the representations do differ


@pytest.mark.parametrize("kind", KINDS)
def test_encode_in_small_batches_of_any_prefixes(sequences, kind):
    encoder = new_encoder(kind, context_stride=2)
    everything = encoder.encode(sequences, np.arange(len(sequences.items)))
    some = np.array([0, 3, 4, 7, 8, 12, 23, 24, 31, 45, 50])
    for batch_tokens in (1, 8, 30):
        told = []
        got = encoder.encode(sequences, some, batch_tokens, lambda step, told=told, **total: told.append((step, total)))
        steps = [step for step, _ in told]
        assert steps[0] == 0 <= steps[-1] < len(some)
        assert steps == sorted(steps)
        assert len(steps) > 1
        assert all(total == {"steps": len(some), "unit": "prefix"} for _, total in told)
        torch.testing.assert_close(got, everything[some], rtol=1e-10, atol=1e-12)
    assert encoder.encode(sequences, some[:0]).shape == (0, SMALL["dim"])


def test_the_papers_length_in_single_precision():
    sequences = random_sequences([75, 50, 12, 51, 3], n_items=ITEMS, seed=6)
    encoder = new_encoder("sasrec", double=False, max_length=50, dim=16)
    prefixes = sequences.prefixes("train")
    got = encoder.encode(sequences, prefixes)
    expected = plain_representations(encoder, sequences, prefixes).detach()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_keeps_the_mode_and_ignores_dropout(sequences, kind):
    encoder = new_encoder(kind, hidden_dropout=0.5, attention_dropout=0.5)
    prefixes = sequences.prefixes("test")
    encoder.train()
    in_training = encoder.encode(sequences, prefixes)
    assert encoder.training
    encoder.eval()
    assert torch.equal(encoder.encode(sequences, prefixes), in_training)
    assert not encoder.training
    assert not in_training.requires_grad


def training_batch(encoder, sequences):
    """Some training prefixes in shared windows, and for each another prefix, read on its own."""
    prefixes = sequences.prefixes("train")
    prefixes = prefixes[np.random.default_rng(1).random(len(prefixes)) < 0.7]
    partners = np.random.default_rng(2).choice(sequences.prefixes("train"), len(prefixes))
    windows = encoder.windows(sequences, prefixes)
    settings = encoder.settings
    joined = Windows.join(windows, single_windows(sequences, partners, settings.max_length, settings.context_stride))
    return prefixes, partners, joined


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_training_pass_equals_the_plain_loss_and_gradients(sequences, kind, stride):
    encoder = new_encoder(kind, context_stride=stride, **NO_DROPOUT).train()
    prefixes, partners, windows = training_batch(encoder, sequences)
    if encoder.shares_prefixes:  # the batch holds what the packing treats differently
        assert windows.outputs.max() > 2
        assert (windows.outputs == 1).sum() > 5
    targets = torch.from_numpy(sequences.next_items(prefixes))
    model = PretrainLoss(encoder, contrastive_weight=0.1, temperature=0.7)
    batch = encoder.pack(sequences, windows)
    with unchanged(sequences, batch, targets, encoder):
        loss, parts = model((batch, targets))
    expected = plain_pretraining_loss(encoder, sequences, prefixes, partners, 0.1, 0.7)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert float(parts["recommendation_loss"]) > 0
    torch.testing.assert_close(
        parts["recommendation_loss"] + 0.1 * parts["contrastive_loss"], loss.detach(), rtol=1e-12, atol=0
    )
    got, wanted = gradients(loss, encoder), gradients(expected, encoder)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    still = {name for name, value in wanted.items() if value.abs().max() < 1e-9}
    assert not still, f"no gradient reaches {still}: the comparison would prove nothing"


def test_without_contrast_only_the_cross_entropy_remains(sequences):
    encoder = new_encoder("sasrec", **NO_DROPOUT).train()
    prefixes = sequences.prefixes("train")
    targets = torch.from_numpy(sequences.next_items(prefixes))
    batch = encoder.pack(sequences, encoder.windows(sequences, prefixes))
    loss, parts = PretrainLoss(encoder, 0.0, 1.0)((batch, targets))
    expected = plain_pretraining_loss(encoder, sequences, prefixes, prefixes, 0.0, 1.0)
    torch.testing.assert_close(loss, expected)
    assert parts.keys() == {"recommendation_loss"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_windows_still_takes_part(sequences, kind):
    """The last step may hold fewer windows than there are ranks."""
    encoder = new_encoder(kind, **NO_DROPOUT).train()
    nothing = np.zeros(0, dtype=np.int64)
    batch = encoder.pack(sequences, Windows(nothing, nothing, nothing))
    loss, _ = PretrainLoss(encoder, 0.1, 1.0)((batch, torch.zeros(0, dtype=torch.int64)))
    assert float(loss.detach()) == 0
    assert all(not grad.any() for grad in gradients(loss, encoder).values())


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_seeded_and_of_both_kinds(sequences, kind):
    prefixes = sequences.prefixes("train")

    def representations(seed, **dropout):
        encoder = new_encoder(kind, double=False, **dropout).train()
        encoder.bits.seed(seed)
        return encoder(encoder.pack(sequences, encoder.windows(sequences, prefixes))).detach()

    both = {"hidden_dropout": 0.5, "attention_dropout": 0.5}
    assert torch.equal(representations(1, **both), representations(1, **both))
    assert not torch.equal(representations(1, **both), representations(2, **both))
    plain = representations(1, **NO_DROPOUT)
    assert not torch.equal(plain, representations(1, hidden_dropout=0.5, attention_dropout=0.0))
    attention_only = representations(1, hidden_dropout=0.0, attention_dropout=0.5)
    assert torch.equal(plain, attention_only) == (kind == "gru4rec")


@pytest.mark.parametrize("kind", KINDS)
def test_a_future_item_changes_no_representation(sequences, kind):
    encoder = new_encoder(kind)
    prefixes = np.arange(5, 15)  # of the third user, whose items lie at 5 to 24
    before = encoder.encode(sequences, prefixes)
    items = sequences.items.copy()
    items[15:] = (items[15:] + 1) % ITEMS
    items[:5] = (items[:5] + 1) % ITEMS  # another user's items
    changed = type(sequences)(sequences.offsets, items, sequences.timestamps, ITEMS)
    assert torch.equal(encoder.encode(changed, prefixes), before)
    items[8] = (items[8] + 1) % ITEMS
    moved = (encoder.encode(changed, prefixes) - before).abs().amax(1) > 1e-9
    assert moved.tolist() == [False] * 3 + [True] * 7


@pytest.mark.parametrize("kind", KINDS)
def test_saved_encoder_comes_back(sequences, kind, tmp_path):
    encoder = new_encoder(kind, double=False, context_stride=3)
    with unchanged(encoder):
        save_encoder(encoder, tmp_path)
    back = load_encoder(tmp_path, ITEMS)
    assert type(back) is {"sasrec": SASRec, "gru4rec": GRU4Rec, "bert4rec": BERT4Rec}[kind]
    assert back.settings == encoder.settings
    assert not back.training
    prefixes = sequences.prefixes("test")
    assert torch.equal(back.encode(sequences, prefixes), encoder.encode(sequences, prefixes))
    with pytest.raises(
        InputError, match=r"knows 11 items, the catalogue has 12; materialise `raserec_pretrained` again"
    ):
        load_encoder(tmp_path, 12)


def test_dropout_falls_on_the_attention_weights():
    """One row of 3 tokens, equal weights; for the last token the mask drops the second key of head 2."""
    settings = EncoderSettings(dim=4, inner_dim=4, heads=2, attention_dropout=0.5)
    attention = _Attention(settings, DropoutBits())
    with torch.no_grad():
        attention.qkv.weight.zero_()[8:] = torch.eye(4)  # queries and keys are zero, values are the tokens
        attention.out.weight.copy_(torch.eye(4))
        attention.qkv.bias.zero_()
        attention.out.bias.zero_()
    mask = torch.full((2, 3, 3), 2.0)
    mask[1, 2, 1] = 0
    attention.dropout.mask = lambda shape, device: mask
    x = torch.arange(12.0).view(1, 3, 4)
    hidden = torch.zeros(2, 3, 3).masked_fill_(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    out = attention(x, hidden, torch.tensor([2, 0]))
    # The last token: twice the mean of all, but in head 2 two thirds of the first and last; the first: twice itself.
    torch.testing.assert_close(out, torch.tensor([[8.0, 10.0, 8.0, 28 / 3], [0.0, 2.0, 4.0, 6.0]]))
