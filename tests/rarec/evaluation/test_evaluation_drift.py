"""Which step drift asks for, and why."""

import pytest

from rarec.evaluation.drift import DriftRule, RellaDriftRule

BEFORE = {"NDCG@10": 0.1, "AUC": 0.7}
CALM = {"NDCG@10": 0.1, "AUC": 0.7, "unknown_items": 0.0, "item_shift": 0.05}


@pytest.mark.parametrize(
    ("events", "judged", "now", "verdict", "reason"),
    [
        (0, 0, {}, "none", "no event is newer"),
        (99, 99, {}, "wait", "99 new events, fewer than least_events = 100"),
        (100, 100, {}, "refresh", "100 new events to remember; NDCG@10 went from 0.1000 to 0.1000 (+0.0%)"),
        (100, 100, {"NDCG@10": 0.086}, "refresh", "(-14.0%)"),
        (100, 100, {"NDCG@10": 0.085}, "finetune", "(-15.0%), at least finetune_drop = 15.0%"),
        (100, 100, {"NDCG@10": 0.05}, "pretrain", "(-50.0%), at least pretrain_drop = 40.0%"),
        (100, 100, {"unknown_items": 0.1}, "pretrain", "10.0% of new events have unknown items"),
        (100, 100, {"item_shift": 0.5}, "pretrain", "shifted by 0.500 beyond chance (pretrain_shift = 0.500)"),
        # Too few can be set beside those of the promotion: the figure tells nothing, the rest does.
        (100, 99, {"NDCG@10": 0.0}, "refresh", "NDCG@10 not judged, as only 99 of them can be set beside"),
        (100, 0, {"item_shift": 0.6}, "pretrain", "shifted by 0.600"),
    ],
)
def test_verdicts(events, judged, now, verdict, reason):
    found, why = DriftRule().judge(events, judged, 99, BEFORE, {**CALM, **now})
    assert found == verdict
    assert reason in why


@pytest.mark.parametrize("events", [0, 99])
def test_what_the_memory_lacks_is_asked_for_without_new_events(events):
    found, why = DriftRule().judge(events, events, 100, BEFORE, CALM)
    assert found == "refresh"
    assert why.startswith("100 events are not in the champion's memory; ")


@pytest.mark.parametrize(
    ("events", "now", "verdict", "reason"),
    [
        (0, CALM, "none", "no event is newer"),
        (99, CALM, "wait", "fewer than least_events = 100"),
        (100, {}, "wait", "all or none of them are likes"),
        (100, CALM, "none", "AUC went from 0.7000 to 0.7000 (+0.0000)"),
        (100, {**CALM, "AUC": 0.67}, "tune", "(-0.0300), at least tune_drop = 0.020"),
        (100, {**CALM, "unknown_items": 0.2}, "tune", "20.0% of new events have unknown items"),
        (100, {**CALM, "item_shift": 0.5}, "tune", "tune_shift = 0.500"),
    ],
)
def test_verdicts_of_the_language_model(events, now, verdict, reason):
    found, why = RellaDriftRule().judge(events, BEFORE, now)
    assert found == verdict
    assert reason in why


def test_steps_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="pretrain_drop is below finetune_drop"):
        DriftRule(finetune_drop=0.5, pretrain_drop=0.4)
