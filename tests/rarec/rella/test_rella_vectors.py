import numpy as np
import pytest
import torch
from rella_toys import CPU, byte_tokenizer, tiny_model

from rarec.errors import InputError
from rarec.rella.vectors import describe, reduce

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
        got = describe(model, tokenizer, TEXTS, CPU, batch_tokens)
        for row, text in enumerate(TEXTS):
            ids = tokenizer(text)["input_ids"]
            with torch.no_grad():
                states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            expected = states[1 if first else 0 :].mean(0).numpy()
            np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(got[0] - got[3]).max() > 0.01


def test_reduction_keeps_cosines_of_centred_states():
    states = np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32)
    states[:, 7] = states[:, 2]  # rank 11
    vectors = reduce(states)
    assert vectors.shape == (30, 11)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    centred = states - states.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, centred @ centred.T, atol=1e-4)
    assert reduce(states, most=4).shape == (30, 4)


def test_vectors_that_tell_nothing_apart_are_refused():
    with pytest.raises(InputError, match="all items the same vector"):
        reduce(np.ones((5, 3), dtype=np.float32))
    states = np.ones((5, 3), dtype=np.float32)
    states[2, 1] = np.nan
    with pytest.raises(InputError, match="no finite vector for item 2"):
        reduce(states)
