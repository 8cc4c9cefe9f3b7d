"""Which step drift asks for, and why."""

import numpy as np
import pytest

from rarec.champions.drift import RELLA_ERROR, DriftRule, RellaDriftRule
from rarec.champions.window import CHOICE_ERROR, Window
from rarec.metrics.ctr import UserBootstrap, ctr_metrics

BEFORE = {"NDCG@10": 0.1, "AUC": 0.7, CHOICE_ERROR: 0.004, RELLA_ERROR: 0.008}
CALM = {**BEFORE, CHOICE_ERROR: 0.003, RELLA_ERROR: 0.006, "unknown_items": 0.0, "item_shift": 0.05}


@pytest.mark.parametrize(
    ("events", "judged", "now", "verdict", "reason"),
    [
        (0, 0, {}, "none", "there are no events newer"),
        (99, 99, {}, "wait", "99 new events, fewer than least_events = 100"),
        (100, 100, {}, "refresh", "100 new events to remember; NDCG@10 went from 0.1000 to 0.1000 (+0.0%)"),
        (100, 100, {"NDCG@10": 0.086}, "refresh", "(-14.0%)"),
        (100, 100, {"NDCG@10": 0.085}, "finetune", "(-15.0%), at least finetune_drop = 15.0%"),
        # 1.96 times the deviation, of 400 users 20 times their error, by the root of 1/900 + 1/400.
        (100, 100, {"NDCG@10": 0.08, CHOICE_ERROR: 0.0085}, "refresh", "(-20.0%), which may be chance"),
        (100, 100, {"NDCG@10": 0.08, CHOICE_ERROR: 0.0084}, "finetune", "(-20.0%), at least finetune_drop"),
        (100, 100, {"NDCG@10": 0.05}, "pretrain", "(-50.0%), at least pretrain_drop = 40.0%"),
        (100, 100, {"unknown_items": 0.1}, "pretrain", "10.0% of new events have unknown items"),
        (100, 100, {"item_shift": 0.5}, "pretrain", "shifted by 0.500 beyond chance (pretrain_shift = 0.500)"),
        # Too few can be set beside those of the promotion: the figure tells nothing, the rest does.
        (100, 99, {"NDCG@10": 0.0}, "refresh", "NDCG@10 not judged: only 99 new events are comparable"),
        (100, 0, {"item_shift": 0.6}, "pretrain", "shifted by 0.600"),
    ],
)
def test_verdicts(events, judged, now, verdict, reason):
    found, why = DriftRule().judge(events, judged, 99, BEFORE, {**CALM, **now}, (900, 400))
    assert found == verdict
    assert reason in why


@pytest.mark.parametrize("events", [0, 99])
def test_what_the_memory_lacks_is_asked_for_without_new_events(events):
    found, why = DriftRule().judge(events, events, 100, BEFORE, CALM, (900, 50))
    assert found == "refresh"
    assert why.startswith("100 events are not in the champion's memory; ")


@pytest.mark.parametrize(
    ("events", "now", "verdict", "reason"),
    [
        (0, CALM, "none", "there are no events newer"),
        (99, CALM, "wait", "fewer than least_events = 100"),
        (100, {}, "wait", "all or none of them are likes"),
        (100, CALM, "none", "AUC went from 0.7000 to 0.7000 (+0.0000)"),
        (100, {**CALM, "AUC": 0.67}, "tune", "(-0.0300), at least tune_drop = 0.020"),
        (100, {**CALM, "AUC": 0.67, RELLA_ERROR: 0.014}, "none", "(-0.0300), which may be chance"),
        (100, {**CALM, "unknown_items": 0.2}, "tune", "20.0% of new events have unknown items"),
        (100, {**CALM, "item_shift": 0.5}, "tune", "tune_shift = 0.500"),
    ],
)
def test_verdicts_of_the_language_model(events, now, verdict, reason):
    found, why = RellaDriftRule().judge(events, BEFORE, now, (900, 400))
    assert found == verdict
    assert reason in why


@pytest.mark.parametrize("events", [100, 1000])
def test_where_nothing_changes_hardly_a_fall_is_believed(events):
    """A world in which every event's rank has the same chances, users' tastes differing."""
    rng = np.random.default_rng(3)

    def lived(n):
        users = np.sort(rng.integers(max(2, n // 5), size=n))
        hit = rng.random(n) < rng.beta(0.4, 2.1, size=n)[users]
        figures = Window(np.arange(n), users).figures(np.where(hit, rng.integers(1, 11, n), np.inf))
        return figures, len(np.unique(users))

    calm = {"unknown_items": 0.0, "item_shift": 0.0}
    asked, fell = 0, 0
    for _ in range(300):
        (before, then_users), (now, users) = lived(2000), lived(events)
        asked += DriftRule().judge(events, events, 0, before, now | calm, (then_users, users))[0] != "refresh"
        fell += now["NDCG@10"] < 0.85 * before["NDCG@10"]
    assert asked / 300 < 0.05
    assert fell / 300 > 0.1  # so often the bare figure would have asked for it


def test_where_nothing_changes_hardly_a_fall_of_auc_is_believed():
    rng = np.random.default_rng(3)

    def lived(n):
        users, taste = np.sort(rng.integers(n // 5, size=n)), rng.standard_normal(n)
        label = taste + 1.3 * rng.standard_normal(n) > 0
        probability = 1 / (1 + np.exp(-taste))
        error = np.std(UserBootstrap(label, users, 1, 200).metrics(probability)[:, 0])
        return {"AUC": ctr_metrics(probability, label)[0], RELLA_ERROR: error}, len(np.unique(users))

    calm = {"unknown_items": 0.0, "item_shift": 0.0}
    asked, fell = 0, 0
    for _ in range(200):
        (before, then_users), (now, users) = lived(2000), lived(300)
        asked += RellaDriftRule().judge(300, before, now | calm, (then_users, users))[0] == "tune"
        fell += now["AUC"] < before["AUC"] - 0.02
    assert asked / 200 < 0.05
    assert fell / 200 > 0.1


def test_steps_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="pretrain_drop is below finetune_drop"):
        DriftRule(finetune_drop=0.5, pretrain_drop=0.4)
