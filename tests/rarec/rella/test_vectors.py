import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rella_toys import CPU, LIMIT, OUT_OF_MEMORY, byte_tokenizer, tiny_model

from rarec.errors import InputError
from rarec.rella.language_model import ModelReference
from rarec.rella.vectors import VectorSettings, check_vectors, describe, encode, reduce, sentence_encoder_folder

TEXTS = [
    "Heat (1995), Action",
    "A",
    "Café Lumière (2003), Drama, and a much longer description than the others",
    "Heat",
]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen", "gpt2"])
@pytest.mark.parametrize("first", [True, False], ids=["first token", "no first token"])
def test_vectors_are_means_over_the_texts_own_tokens(kind, first):
    """Against one text at a time, unpadded; the mean leaves the first token out."""
    tokenizer = byte_tokenizer(first)
    model = tiny_model(kind, len(tokenizer))
    for batch_tokens in (10_000, 20):
        got, cut = describe(model, tokenizer, TEXTS, CPU, LIMIT, batch_tokens)
        assert cut == 0
        for row, text in enumerate(TEXTS):
            ids = tokenizer(text)["input_ids"]
            with torch.no_grad():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            expected = states[1 if first else 0 :].mean(0).numpy()
            np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(got[0] - got[3]).max() > 0.01


def test_descriptions_longer_than_the_model_reads_lose_their_ends():
    """Of 512 places the first token has one."""
    tokenizer = byte_tokenizer()
    model = tiny_model("gpt2", len(tokenizer))  # a place beyond its last is an error
    long = "".join(chr(97 + n % 26) for n in range(600))
    got, cut = describe(model, tokenizer, [TEXTS[0], long, TEXTS[1]], CPU, LIMIT)
    assert cut == 1
    kept, none = describe(model, tokenizer, [TEXTS[0], long[: LIMIT - 1], TEXTS[1]], CPU, LIMIT)
    assert none == 0
    np.testing.assert_allclose(got, kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("full", OUT_OF_MEMORY)
def test_out_of_memory_says_what_to_lower(full, monkeypatch):
    tokenizer = byte_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    monkeypatch.setattr(model.model, "forward", full)
    message = "1 descriptions of up to 76 tokens at once; lower batch_tokens of semantic_item_vectors below 76"
    with pytest.raises(InputError, match=message):
        describe(model, tokenizer, TEXTS, CPU, LIMIT)


def test_reduction_keeps_cosines_of_centred_states():
    states = np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32)
    states[:, 7] = states[:, 2]  # rank 11
    vectors, explained = reduce(states)
    assert vectors.shape == (30, 11)
    assert explained == pytest.approx(1)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    centred = states - states.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, centred @ centred.T, atol=1e-4)


def test_reduction_tells_how_much_variance_it_keeps():
    """Against the eigenvalues of the covariance and projections on its eigenvectors, up to their signs."""
    states = (np.random.default_rng(1).standard_normal((40, 6)) * [5, 3, 2, 1, 0.5, 0.1] + 7).astype(np.float32)
    vectors, explained = reduce(states, most=3)
    values, axes = np.linalg.eigh(np.cov(states.astype(np.float64).T))
    assert explained == pytest.approx(values[-3:].sum() / values.sum(), rel=1e-5)
    assert 0.9 < explained < 0.99
    parts = (states - states.mean(0)) @ axes[:, :-4:-1]
    parts /= np.linalg.norm(parts, axis=1, keepdims=True)
    assert vectors.shape == (40, 3)
    np.testing.assert_allclose(np.abs(vectors), np.abs(parts), atol=1e-4)


def test_vectors_that_tell_nothing_apart_are_refused():
    with pytest.raises(InputError, match="all items the same vector"):
        reduce(np.ones((5, 3), dtype=np.float32))
    states = np.ones((5, 3), dtype=np.float32)
    states[2, 1] = np.nan
    with pytest.raises(InputError, match="vector for item 2 is not finite"):
        reduce(states)


def test_the_check_counts_what_tells_nothing():
    vectors = np.eye(4, dtype=np.float32)
    assert check_vectors(vectors) == (True, {"items": 4, "not_finite": 0, "zero": 0, "all_the_same": 0})
    broken = vectors.copy()
    broken[1] = 0
    broken[2, 0], broken[3, 1] = np.nan, np.inf
    assert check_vectors(broken) == (False, {"items": 4, "not_finite": 2, "zero": 1, "all_the_same": 0})
    assert check_vectors(np.ones((3, 2), np.float32)) == (
        False,
        {"items": 3, "not_finite": 0, "zero": 0, "all_the_same": 1},
    )
    assert check_vectors(vectors[:1])[0]  # the only item is not like another
    for one in (np.zeros((4, 4), np.float32), broken[[0, 3]], broken[[0, 1]]):
        assert not check_vectors(one)[0]


def test_the_language_model_encodes_by_default(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reference = ModelReference("scratch", "", tmp_path, "none", 40)
    got, cut = encode(reference, TEXTS, CPU, VectorSettings(batch_tokens=64), tmp_path)
    assert cut == 1
    np.testing.assert_allclose(got, describe(model, tokenizer, TEXTS, CPU, 40)[0], rtol=1e-4, atol=1e-6)


def test_a_sentence_encoder_is_asked_by_name(monkeypatch, tmp_path):
    settings = VectorSettings(encoder="sentence-transformers:some/model@v1")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"some/model@v1 needs the package .*pip install sentence-transformers"):
        encode(None, TEXTS, CPU, settings, tmp_path)

    class Encoder:
        def __init__(self, name, device, cache_folder, revision):
            assert (name, device, cache_folder, revision) == ("some/model", "cpu", str(tmp_path), "v1")

        def encode(self, texts, show_progress_bar):
            return np.array([[len(text), 1] for text in texts], dtype=np.float64)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))
    got, cut = encode(None, TEXTS, CPU, settings, tmp_path)
    assert cut is None  # it cuts by itself
    assert got.dtype == np.float32
    assert got[:, 0].tolist() == [len(text) for text in TEXTS]

    monkeypatch.setattr(Encoder, "encode", OUT_OF_MEMORY[1])
    with pytest.raises(InputError, match="sentence-transformers:some/model@v1: out of memory; use a smaller encoder"):
        encode(None, TEXTS, CPU, settings, tmp_path)

    def missing(*_, **__):
        raise OSError("no such\nmodel")

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=missing))
    with pytest.raises(InputError, match="sentence-transformers:some/model@v1 cannot be loaded: no such model"):
        encode(None, TEXTS, CPU, settings, tmp_path)


def test_a_sentence_encoder_is_pinned(tmp_path):
    assert sentence_encoder_folder("language-model") is None
    assert sentence_encoder_folder("sentence-transformers:some/model@v1") is None
    assert sentence_encoder_folder(f"sentence-transformers:{tmp_path}") == tmp_path
    with pytest.raises(InputError, match="there is no such folder; a name from a hub needs a revision"):
        sentence_encoder_folder("sentence-transformers:some/model")


def test_texts_with_common_words_are_near_by_tf_idf(tmp_path):
    texts = ["Heat (1995): Action|Crime", "Ronin (1998): Action|Crime", "Café Lumière (2003): Drama", "Heat II: Drama"]
    settings = VectorSettings(encoder="tf-idf", dimensions=3)
    got, cut = encode(None, texts, CPU, settings, tmp_path)
    assert cut is None
    assert (got.dtype, got.shape) == (np.float32, (4, 3))
    np.testing.assert_array_equal(got, encode(None, texts, CPU, settings, tmp_path)[0])
    full, _ = encode(None, texts, CPU, VectorSettings(encoder="tf-idf"), tmp_path)
    near = full @ full.T  # with all dimensions, cosines of the words' weights
    np.testing.assert_allclose(np.diag(near), 1, rtol=1e-5)
    assert near[0, 1] > near[0, 3] > near[0, 2] == pytest.approx(0, abs=1e-6)
    assert sentence_encoder_folder("tf-idf") is None
    with pytest.raises(InputError, match="the descriptions have no words; use another encoder"):
        encode(None, ["...", "?"], CPU, settings, tmp_path)


def test_settings_know_three_kinds_of_encoder():
    for encoder in ("language-model", "tf-idf", "sentence-transformers:/models/x"):
        assert VectorSettings(encoder=encoder).encoder == encoder
    for encoder in ("sentence-transformers:", "word2vec", "xsentence-transformers:a"):
        with pytest.raises(ValidationError, match="must be language-model, tf-idf, sentence-transformers:<folder> or"):
            VectorSettings(encoder=encoder)
