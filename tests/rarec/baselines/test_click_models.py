import numpy as np
import pandas as pd
import pytest
import torch

from rarec.baselines.click_models import Clicks, SasrecForClicks, SearchedInterest, Sim, bucket
from rarec.baselines.click_training import (
    ClickObjective,
    ClickSearchSettings,
    ClickSettings,
    categories,
    same_category,
    save_clicks,
)
from rarec.baselines.peer_predictions import ClickData
from rarec.data.ctr import CtrSamples
from rarec.metrics.ctr import ctr_metrics
from rarec.training.fit import fit

B, K, DIM, HEADS, ITEMS, USERS = 40, 6, 8, 2, 12, 5
SIZES, RATINGS = [USERS, ITEMS + 1], 3


def clicks_of(n=B, seed=0):
    rng = np.random.default_rng(seed)
    shown = rng.integers(1, K + 1, n)  # behaviours of each sample, at the end of its row
    there = np.arange(K) >= (K - shown)[:, None]

    def draw(low, high):
        return torch.from_numpy(np.where(there, rng.integers(low, high, (n, K)), 0))

    fields = torch.from_numpy(np.column_stack([rng.integers(USERS, size=n), rng.integers(1, ITEMS + 1, n)]))
    return Clicks(
        fields, draw(1, ITEMS + 1), draw(1, RATINGS), draw(1, 40), draw(1, ITEMS + 1), draw(1, RATINGS), draw(1, 40)
    )


def changed(clicks, **values):
    return Clicks(**{name: values.get(name, getattr(clicks, name)) for name in Clicks.__dataclass_fields__})


@pytest.fixture(params=["sim", "sasrec"])
def model(request):
    made = ClickSettings(dim=DIM, heads=HEADS, behaviours=K, dropout=0.0).build(request.param, SIZES, RATINGS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


def test_ages_fall_into_powers_of_two():
    assert bucket(torch.tensor([0, 1, 2, 3, 4, 7, 8, 1000, 10**6])).tolist() == [0, 0, 1, 1, 2, 2, 3, 9, 15]


def test_searched_interest_by_the_formula():
    """SIM, section 3.2.2, one sample, head and behaviour after the other."""
    torch.manual_seed(0)
    attention = SearchedInterest(DIM, HEADS).double()
    target, behaviours = torch.randn(3, DIM).double(), torch.randn(3, K, DIM).double()
    age = torch.randint(1, 30, (3, K))
    present = torch.tensor([[True] * K, [False] * 4 + [True] * 2, [False] * K])
    got = attention(target, behaviours, age, present)
    for b in range(3):
        z = [torch.cat([behaviours[b, k], attention.age.weight[int(np.log2(age[b, k]))]]) for k in range(K)]
        for head in range(HEADS):
            rows = slice(head * DIM, (head + 1) * DIM)
            there = [k for k in range(K) if present[b, k]]
            mixed = torch.zeros(2 * DIM, dtype=torch.float64)
            if there:
                query = attention.query.weight[rows] @ target[b]
                scores = torch.stack([(attention.key.weight[rows] @ z[k]) @ query for k in there])
                mixed = sum(w * z[k] for w, k in zip(scores.softmax(0), there, strict=True))
            torch.testing.assert_close(got[b, head * 2 * DIM : (head + 1) * 2 * DIM], mixed)


def test_what_is_absent_never_matters(model):
    clicks = clicks_of()
    before = model(clicks)
    absent = clicks.history == 0
    assert absent.any()
    noise = changed(
        clicks,
        rating=torch.where(absent, 1, clicks.rating),
        age=torch.where(absent, 7, clicks.age),
        searched_rating=torch.where(clicks.searched == 0, 1, clicks.searched_rating),
    )
    torch.testing.assert_close(model(noise), before)
    assert not torch.allclose(model(changed(clicks, rating=torch.where(absent, 0, RATINGS - clicks.rating))), before)


def test_a_sample_does_not_depend_on_the_others(model):
    clicks = clicks_of()
    alone = torch.cat([model(clicks[torch.tensor([row])]) for row in range(B)])
    torch.testing.assert_close(alone, model(clicks), rtol=1e-4, atol=1e-5)


def test_only_sim_reads_what_was_searched():
    clicks = clicks_of()
    other = changed(clicks, searched=torch.where(clicks.searched > 0, clicks.searched % ITEMS + 1, 0))
    for kind, reads in ((Sim, True), (SasrecForClicks, False)):
        torch.manual_seed(0)
        made = (kind(SIZES, RATINGS, DIM, HEADS, 0.0) if reads else kind(SIZES, RATINGS, DIM, HEADS, 0.0, K)).eval()
        assert torch.allclose(made(other), made(clicks)) is not reads


def test_sasrec_reads_the_order():
    torch.manual_seed(0)
    model = SasrecForClicks(SIZES, RATINGS, DIM, HEADS, 0.0, K).eval()
    full = clicks_of()
    full = changed(full, history=torch.randint(1, ITEMS + 1, (B, K)))
    turned = changed(full, history=full.history[:, [1, 0, 2, 3, 4, 5]], rating=full.rating[:, [1, 0, 2, 3, 4, 5]])
    assert not torch.allclose(model(turned), model(full))


@pytest.mark.parametrize("kind", ["sim", "sasrec"])
def test_it_learns_that_liked_behaviours_foretell_likes(kind, tmp_path, single_process):
    settings = ClickSettings(
        dim=DIM, heads=HEADS, behaviours=K, dropout=0.1, epochs=6, batch_size=32, learning_rate=0.01
    )
    clicks = clicks_of(900, seed=3)
    label = (clicks.rating[:, -1] == 2).numpy()  # whether the latest behaviour was liked
    train, valid, test = np.arange(600), np.arange(600, 750), np.arange(750, 900)
    objective = ClickObjective(
        settings.build(kind, SIZES, RATINGS), clicks, label, train, valid, settings, torch.device("cpu")
    )
    fit(
        objective, settings, stage=kind, output=tmp_path, checkpoint=tmp_path / "checkpoint", report=lambda **_: None
    )  # fmt: skip
    assert ctr_metrics(objective.predict(test), label[test])[0] > 0.8


def catalogue_of(**columns):
    missing = {"genres": None, "category": None, "author": None, "publisher": None, "year": None}
    return pd.DataFrame({**missing, **columns})


def test_clicks_by_hand(tmp_path):
    samples = CtrSamples(
        np.array([0, 4, 7]), np.array([2, 3, 6]), np.array([True, False, True]), np.array([0, 1, 2, 3])
    )
    items = np.array([0, 1, 2, 1, 2, 0, 1])
    rating = np.array([5, 1, 4, 1, 1, 4, 5])
    catalogue = catalogue_of(genres=["a|b", "b", "a"])
    columns = ("gender", "age_group", "age", "occupation", "location", "zip_code")
    users = pd.DataFrame(dict.fromkeys(columns), index=[0, 1])
    data = ClickData(samples, items, rating, rating > 3, catalogue, users, np.array([0]))
    save_clicks(data, 1, tmp_path / "clicks.npz")
    with np.load(tmp_path / "clicks.npz") as given:
        assert given["history"].tolist() == [[2], [3], [1]]
        assert given["rating"].tolist() == [[1], [2], [2]]
        assert given["age"].tolist() == [[1], [1], [1]]
        # Of the first genre of the target: item 0 for item 2; itself for item 1, and nothing where it is the first.
        assert given["searched"].tolist() == [[1], [2], [0]]
        assert given["searched_age"].tolist() == [[2], [2], [0]]
        assert given["searched_rating"].tolist() == [[3], [1], [0]]
        assert given["ratings"] == 4


@pytest.mark.parametrize("most", [1, 3, 20])
def test_hard_search_equals_looking_back_one_by_one(most):
    rng = np.random.default_rng(0)
    offsets = np.array([0, 15, 16, 40])
    category = rng.integers(-1, 4, 40)
    position = np.sort(rng.choice(40, 25, replace=False))
    samples = CtrSamples(offsets, position, np.zeros(25, dtype=bool), np.array([0, 25, 25, 25]))
    for p, ages in zip(position.tolist(), same_category(samples, category, most).tolist(), strict=True):
        first = offsets[np.searchsorted(offsets, p, side="right") - 1]
        same = [p - q for q in range(first, p) if category[q] == category[p] >= 0][-most:]
        assert ages == [0] * (most - len(same)) + same


def test_categories_are_first_genres_or_else_what_there_is():
    assert categories(catalogue_of(genres=["a|b", None, "a", "b"])).tolist() == [0, -1, 0, 1]
    assert categories(catalogue_of(genres=[None, None], category=["x", "y"])).tolist() == [0, 1]
    assert categories(catalogue_of(genres=[None, None])).tolist() == [-1, -1]


def test_settings():
    with pytest.raises(ValueError, match="dim = 16 is not a multiple of heads = 3"):
        ClickSettings(heads=3)
    search = ClickSearchSettings(learning_rates=(0.1, 0.2), dropouts=(0.3,), epochs=4)
    assert [(one.learning_rate, one.dropout, one.epochs) for one in search.trials()] == [(0.1, 0.3, 4), (0.2, 0.3, 4)]
    with pytest.raises(ValueError, match="dropouts"):
        ClickSearchSettings(dropouts=(0.3, 0.3))
