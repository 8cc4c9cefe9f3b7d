"""The replay at tiny size: every strategy does what its name says, and nothing knows what is yet to come."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_worker import benchmark_worker
from clean_tables import clean_table
from matplotlib.figure import Figure

from benchmarks.replay import STRATEGIES, WEEK_S, Course, Trainer, draw, main, replay, summarise
from rarec.champions.window import Window
from rarec.raserec.settings import FinetuneSettings, PretrainSettings

FIRST = 10_000_000
WEEKS, QUIET_WEEK, RETRAIN_WEEKS = 4, 2, 3  # so the last week begins with a full retraining
LAST = FIRST + (WEEKS - 1) * WEEK_S
FILMS = [f"film{number:02}" for number in range(24)]
TRAINER = Trainer(
    PretrainSettings(
        dim=8, inner_dim=8, layers=1, heads=1, max_length=6, batch_size=32, learning_rate=0.01, epochs=2, patience=2
    ),
    # One memory a channel and nothing of the query's own, so that another memory shows in the ranks.
    FinetuneSettings(
        memories=1, alpha=0, beta=0.5, heads=1, inner_dim=8, dropout=0.1, batch_size=32, learning_rate=0.05, epochs=6,
        patience=6,
    ),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def worker(_process_group):
    """One for all tests of this file."""
    with benchmark_worker():
        yield


def lives():
    """Nobody sees a film twice. Old friends go on every week but the quiet one; each week brings a newcomer, whose id
    sorts before all others, and a film that nobody knew.
    """
    rng = np.random.default_rng(5)
    unseen = {f"friend{number:02}": list(rng.permutation(FILMS)) for number in range(14)}
    rows = [(user, left.pop(), int(rng.integers(FIRST))) for user, left in unseen.items() for _ in range(7)]
    for week in range(WEEKS):
        if week == QUIET_WEEK:
            continue
        unseen[f"a newcomer{WEEKS - week}"] = list(rng.permutation(FILMS))
        for user in rng.permutation(list(unseen)[:-1])[:8].tolist() + list(unseen)[-1:]:
            films = [*(unseen[user].pop() for _ in range(3)), f"new{week}"]
            times = FIRST + week * WEEK_S + rng.integers(WEEK_S, size=4)
            rows += [(user, film, int(time)) for film, time in zip(films, times, strict=True)]
    return clean_table(rows)


TABLE = lives()


def live(table, first=FIRST, weeks=WEEKS, say=lambda line: None):
    return replay(table, TRAINER, first, weeks, RETRAIN_WEEKS, say)


@pytest.fixture(scope="module")
def lived():
    said = []
    before = TABLE.copy()
    courses, windows, begins = live(TABLE, say=said.append)
    pd.testing.assert_frame_equal(TABLE, before)
    return SimpleNamespace(courses=courses, windows=windows, begins=begins, said=said)


def weights(module):
    return torch.cat([parameter.detach().ravel() for parameter in module.parameters()])


def test_weeks_hold_their_events_and_a_week_without_any_is_passed_over(lived):
    assert lived.begins == [FIRST, FIRST + WEEK_S, LAST]
    for begin, window in zip(lived.begins, lived.windows, strict=True):
        inside = TABLE["timestamp"].between(begin, begin + WEEK_S - 1)
        known = TABLE[TABLE["timestamp"] < begin + WEEK_S]
        assert window.events.tolist() == np.flatnonzero(inside[known.index]).tolist()
    assert len(lived.said) == 3 * len(STRATEGIES)
    assert lived.said[-1].startswith("week 4/4  full retraining: NDCG@10 0.")
    for course in lived.courses.values():
        assert [len(ranks) for ranks in course.ranks] == [36, 36, 36]
        figures = [window.figures(ranks) for window, ranks in zip(lived.windows, course.ranks, strict=True)]
        assert course.ndcg == [values["NDCG@10"] for values in figures]


def test_every_strategy_updates_what_its_name_says(lived):
    nothing, refresh, tuned, retrained = (lived.courses[name].served for name in STRATEGIES)
    champion, n_memories = nothing.recommender, 14 * (7 - 1)
    assert len(champion.bank) == n_memories
    assert refresh.recommender.encoder is tuned.recommender.encoder is champion.encoder
    assert refresh.recommender.module is champion.module
    assert not torch.equal(weights(tuned.recommender.module), weights(champion.module))
    assert retrained.recommender.encoder is not champion.encoder

    # Two weeks' new films are unknown to the champion's encoder, the last week's to all.
    assert set(refresh.item_ids) == set(tuned.item_ids) == set(FILMS)
    assert set(retrained.item_ids) == {*FILMS, "new0", "new1"}
    past = TABLE[TABLE["timestamp"] < LAST]
    newcomers = past["user_id"].nunique() - 14
    assert newcomers == 2
    of_known_films = past["item_id"].isin(FILMS).sum() - 14 - newcomers
    assert len(refresh.recommender.bank) == len(tuned.recommender.bank) == of_known_films > n_memories
    assert len(retrained.recommender.bank) == len(past) - 14 - newcomers


def test_strategies_differ_from_when_they_differ(lived):
    nothing, refresh, tuned, retrained = (lived.courses[name] for name in STRATEGIES)
    for course in (refresh, tuned, retrained):
        np.testing.assert_array_equal(course.ranks[0], nothing.ranks[0])  # all share the champion
        assert not np.array_equal(course.ranks[1], nothing.ranks[1])
    np.testing.assert_array_equal(retrained.ranks[1], refresh.ranks[1])  # not yet its week
    assert not np.array_equal(tuned.ranks[1], refresh.ranks[1])
    assert len({tuple(course.ranks[2]) for course in lived.courses.values()}) == len(STRATEGIES)
    assert nothing.seconds < refresh.seconds < min(tuned.seconds, retrained.seconds)


def test_a_newcomer_is_nobody_only_at_first_and_a_new_film_always(lived):
    for week, window in enumerate(lived.windows):
        begin = lived.begins[week]
        events = TABLE[TABLE["timestamp"] < begin + WEEK_S].iloc[window.events]
        new = events["item_id"].str.startswith("new")
        newcomer = events["user_id"].eq(min(events["user_id"]))
        nobody = newcomer & ((newcomer & ~new).cumsum() <= 1)  # until the first film that is known
        assert (newcomer.sum(), new.sum()) == (4, 9)
        assert 1 <= nobody.sum() <= 2
        missed = (new | nobody).to_numpy()
        for name in STRATEGIES:
            np.testing.assert_array_equal(np.isinf(lived.courses[name].ranks[week]), missed, name)


def test_courses_without_training_are_the_champion_with_what_it_may_remember(lived):
    """Refreshed at one stroke as of the week's begin, or not at all."""
    champion = lived.courses["no update"].served
    for week, (begin, window) in enumerate(zip(lived.begins, lived.windows, strict=True)):
        translation = champion.translate(TABLE[TABLE["timestamp"] < begin + WEEK_S], clock=True)
        carried, refreshed = champion.carried(translation), champion.refreshed(translation, until=begin)
        for name, bank in (("no update", carried), ("refresh", refreshed)):
            expected = champion.ranks(translation, window.events, bank)
            np.testing.assert_array_equal(lived.courses[name].ranks[week], expected, name)


def test_retrained_is_as_trained_for_the_first_time_that_day(lived):
    courses, _, begins = live(TABLE, first=LAST, weeks=1)
    assert begins == [LAST]
    for course in courses.values():
        np.testing.assert_array_equal(course.ranks[0], lived.courses["full retraining"].ranks[2])


def test_what_comes_later_changes_no_rank(lived):
    """In the middle of the last week, which begins with every kind of update, all that follows has not happened."""
    cut = LAST + WEEK_S // 2
    past = TABLE[TABLE["timestamp"] < cut]
    courses, windows, begins = live(clean_table(past[["user_id", "item_id", "timestamp"]]))
    assert begins == lived.begins
    kept = TABLE.iloc[lived.windows[2].events]["timestamp"].to_numpy() < cut
    assert 9 < len(windows[2]) == kept.sum() < 27
    for name in STRATEGIES:
        ours, theirs = courses[name].ranks, lived.courses[name].ranks
        for mine, other in zip(ours, [*theirs[:2], theirs[2][kept]], strict=True):
            np.testing.assert_array_equal(mine, other, name)


def test_summary_takes_all_weeks_together():
    courses = {
        "no update": Course(None, ranks=[np.array([1, np.inf]), np.array([np.inf])]),
        "refresh": Course(None, seconds=12.5, ranks=[np.array([1.0, 3.0]), np.array([2.0])]),
    }
    windows = [Window(np.array([3, 4]), np.array([0, 1])), Window(np.array([7]), np.array([0]))]
    figures = summarise(courses, windows)
    # User 0 gains (1 + 1 / log2(3)) / 2 - 1 / 2 = .3155, user 1 gains 1 / log2(4): the bounds of all resamples.
    assert figures["refresh"] == {
        "events": 3,
        "users": 2,
        "HR@5": "1.0000",
        "HR@10": "1.0000",
        "NDCG@10": "0.6577",
        "missed": "0.0000",
        "NDCG@10 minus no update": "+0.4077 (+0.3155 to +0.5000)",
        "updates, s": 12.5,
    }
    assert figures["no update"]["NDCG@10"] == figures["no update"]["HR@10"] == "0.2500"
    assert figures["no update"]["missed"] == "0.6667"
    assert figures["no update"]["NDCG@10 minus no update"] == "+0.0000 (+0.0000 to +0.0000)"


def test_plot_shows_quality_by_week_and_by_seconds(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure) or save(figure, *a, **k))
    figures = {
        "no update": {"updates, s": 0.0, "NDCG@10": "0.2"},
        "refresh": {"updates, s": 40.0, "NDCG@10": "0.25"},
    }
    by_week = {"no update": {"week 1": "0.3", "week 3": "0.1"}, "refresh": {"week 1": "0.3", "week 3": "0.2"}}
    png = tmp_path / "images" / "replay.png"
    draw(figures, by_week, "Lives", png)
    assert png.read_bytes().startswith(b"\x89PNG")
    left, right = drawn[0].axes
    assert left.get_title() == "Lives"
    by_week = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()}
    assert by_week == {"no update": [[1, 0.3], [3, 0.1]], "refresh": [[1, 0.3], [3, 0.2]]}
    assert right.get_xscale() == "log"
    courses_drawn = [line.get_xydata().tolist() for line in right.get_lines()]
    assert courses_drawn == [[[0.1, 0.2]], [[40, 0.25]]]


def test_the_command_keeps_tables_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("benchmarks.workloads.read_tables", lambda spec, data: SimpleNamespace(interactions=TABLE))
    monkeypatch.setattr("benchmarks.replay.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.replay.PLOT", tmp_path / "replay.png")
    monkeypatch.chdir(tmp_path)
    options = {"dataset": "ml-100k", "begin": 0.55, "weeks": 2, "retrain_weeks": 1, "epochs": 1, "threads": 1}
    main(data=Path("films"), **options, record=True)
    assert capsys.readouterr().out.count("week 2/2") == len(STRATEGIES)
    record = json.loads((tmp_path / "replay.json").read_text())
    assert record["command"] == (
        "python -m benchmarks.replay --data films --dataset ml-100k --begin 0.55 --weeks 2 --retrain-weeks 1 "
        "--epochs 1 --threads 1 --record"
    )
    whole, by_week = (record["results"][name] for name in ("replay", "weeks"))
    assert list(whole) == list(by_week) == list(STRATEGIES)
    assert all(list(column) == ["week 1", "week 2"] for column in by_week.values())
    assert len({column["week 1"] for column in by_week.values()}) == 1
    assert whole["no update"]["events"] > 30
    assert whole["full retraining"]["updates, s"] > whole["no update"]["updates, s"]
    assert "| NDCG@10 minus no update | +0.0000 (+0.0000 to +0.0000) |" in (tmp_path / "replay.md").read_text()
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
