import json
import math
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from ctr_report_toys import MIXED, RECENT, SIZES, YARDSTICK, make_data, make_outcomes, make_report

from rarec.errors import InputError
from rarec.metrics.ctr import METRICS, calibration, ctr_metrics, difference, intervals
from rarec.reports.ctr.groups import history_groups, target_groups
from rarec.reports.ctr.records import CtrComparison, CtrScores, Estimate
from rarec.reports.ctr.report import (
    CtrOutcome,
    CtrReport,
    Epoch,
    Link,
    PromptPreview,
    SeedRun,
    TrainingCurve,
    ctr_markdown_tables,
    ctr_text_tables,
    write_ctr_report,
)
from rarec.reports.ctr.tables import below_chance, ctr_cards, ctr_tables, reading, summary, with_interval
from rarec.reports.records import SPLIT_NAMES
from rarec.reports.tables import number

HOSTILE = '<script>alert("x")</script> | `a` ]]> -- $x$ \x1b[31m'


def cells_of(report, title, split):
    """Rows of a table by their first cell, each by the names of its columns."""
    (table,) = (t for t in ctr_tables(report) if t.title == title and f" {SPLIT_NAMES[split]} split" in t.where)
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def test_grid_holds_the_metrics_and_intervals_of_every_model(tmp_path):
    outcomes, (_, data) = make_outcomes(), make_data()
    report = make_report(outcomes)
    assert report.splits == ["test", "valid"]
    assert len(report.scores) == 3 * 2
    html = write_ctr_report(report, tmp_path).html.read_text()
    for outcome in outcomes:
        labels, users = data["labels"][outcome.split], data["users"][outcome.split]
        own = report.of(outcome.model, outcome.split)
        expected = intervals(outcome.probability, labels, users, seed=42 + 43, resamples=50)
        cells = cells_of(report, "Metrics", outcome.split)[outcome.model]
        for name, value in zip(METRICS, ctr_metrics(outcome.probability, labels), strict=True):
            assert own[name].value == value
            assert own[name].low == pytest.approx(expected[name].low)
            assert own[name].high == pytest.approx(expected[name].high)
            assert cells[name].startswith(f"{value:.4f} (")
            assert f"<td>{cells[name]}</td>" in html
        size = next(size for size in report.sizes if size.split == outcome.split)
        assert (size.n_samples, size.n_users) == (len(labels), len(np.unique(users)))
        assert size.likes == labels.mean()
    assert "400 samples of 40 users" in html


def test_comparisons_are_paired_and_read_in_words():
    outcomes, (_, data) = make_outcomes(), make_data()
    report = make_report(outcomes)
    p = {(o.model, o.split): o.probability for o in outcomes}
    assert {(c.baseline, c.candidate) for c in report.comparisons} == {(RECENT, MIXED), (YARDSTICK, report.chosen)}
    assert len(report.comparisons) == 2 * 2
    for c in report.comparisons:
        expected = difference(
            p[c.candidate, c.split], p[c.baseline, c.split], data["labels"][c.split], data["users"][c.split], 85, 50
        )
        for name, own in c.differences.items():
            assert (own.value, own.low, own.high) == pytest.approx(
                (expected[name].value, expected[name].low, expected[name].high)
            )
            cells = cells_of(report, f"{c.candidate} minus {c.baseline}", c.split)[name]
            assert cells["Difference"] == number(own.value, "+.4f")
            assert cells["The interval"] == reading(name, own)


def test_reading_of_intervals():
    def told(metric, low, high):
        return reading(metric, Estimate(value=(low + high) / 2, low=low, high=high))

    assert told("AUC", 0.01, 0.02) == told("LogLoss", -0.02, -0.01) == "excludes 0: better"
    assert told("AUC", -0.02, -0.01) == told("ECE", 0.01, 0.02) == "excludes 0: worse"
    assert told("ACC", -0.01, 0.02) == told("AUC", 0.0, 0.02) == "includes 0"
    assert told("AUC", math.nan, math.nan) == "–"


def test_groups_partition_the_samples():
    outcomes, (_, data) = make_outcomes(), make_data()
    report = make_report(outcomes)
    for split, n in SIZES.items():
        for grouping, names in (
            ("history length", ["short", "medium", "long"]),
            ("item popularity", ["new", "tail", "mid", "head"]),
        ):
            groups = [g for g in report.groups if (g.split, g.grouping) == (split, grouping)]
            assert [g.group for g in groups] == names
            assert sum(g.n_samples for g in groups) == n
            assert sum(g.n_samples * g.likes for g in groups) == pytest.approx(data["labels"][split].sum())
            for model in report.models:
                scores = [s for s in report.group_scores if (s.model, s.split, s.grouping) == (model, split, grouping)]
                total = sum(g.n_samples * s.metrics["LogLoss"] for g, s in zip(groups, scores, strict=True))
                assert total / n == pytest.approx(report.of(model, split)["LogLoss"].value)
    new = data["target_count"]["test"] == 0
    expected = ctr_metrics(outcomes[1].probability[new], data["labels"]["test"][new])
    cells = cells_of(report, "By item popularity", "test")[YARDSTICK]
    assert cells["AUC, new"] == number(expected[0])
    assert cells["LogLoss, new"] == number(expected[1])


def test_group_edges_are_those_of_the_test_samples():
    groups = history_groups({"valid": [5, 6, 99], "test": [5, 6, 6, 7, 8, 9]})
    assert groups["test"].index.tolist() == [0, 0, 0, 1, 2, 2]
    assert groups["valid"].index.tolist() == [0, 0, 2]
    assert groups["test"].descriptions == ("0 to 6 behaviours", "7 behaviours", "more than 7 behaviours")
    groups = target_groups({"test": [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]})["test"]
    assert groups.index.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    assert groups.descriptions[1:3] == ("1 to 2 training interactions", "3 to 8 training interactions")
    alike = target_groups({"test": [4, 4, 4]})["test"]
    assert alike.index.tolist() == [1, 1, 1]
    assert alike.descriptions[2] == "none: the edges coincide"
    assert target_groups({"test": [0, 0]})["test"].index.tolist() == [0, 0]


def test_one_class_and_empty_groups_are_dashes(tmp_path):
    _, data = make_data()
    labels = {split: own | (data["history_length"][split] < 13) for split, own in data["labels"].items()}
    report = make_report(labels=labels, target_count={split: np.ones(n) for split, n in SIZES.items()})
    short_histories = cells_of(report, "By history length", "test")[MIXED]
    assert short_histories["AUC, short"] == "–"
    assert short_histories["LogLoss, short"] != "–"
    popularity = cells_of(report, "By item popularity", "test")[MIXED]
    assert [name for name, cell in popularity.items() if cell == "–"] == [
        f"{metric}, {group}" for metric in ("AUC", "LogLoss") for group in ("new", "mid", "head")
    ]
    all_liked = make_report(labels={split: np.full(n, True) for split, n in SIZES.items()})
    assert cells_of(all_liked, "Metrics", "test")[MIXED]["AUC"] == "–"
    html = write_ctr_report(all_liked, tmp_path).html.read_text()
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL).lower()


def test_chosen_model_is_the_best_on_validation_or_the_last():
    rng = np.random.default_rng(0)
    by_key = {(o.model, o.split): o for o in make_outcomes()}
    by_key[MIXED, "valid"] = CtrOutcome(MIXED, "valid", rng.random(SIZES["valid"]))
    report = make_report(list(by_key.values()))  # MIXED is better on test, which must not count
    assert report.of(MIXED, "test")["AUC"].value > report.of(RECENT, "test")["AUC"].value
    assert report.chosen == RECENT
    card = ctr_cards(report)[0]
    assert (card.label, card.value) == ("AUC, test", number(report.of(RECENT, "test")["AUC"].value))
    assert card.details[0] == RECENT
    assert f"{YARDSTICK}: {number(report.of(YARDSTICK, 'test')['AUC'].value)}" in card.details
    assert ctr_cards(report)[3].label == "AUC difference, test"
    assert make_report(chosen=MIXED).chosen == MIXED
    assert make_report(make_outcomes(splits=("test",))).chosen == MIXED


def test_yardstick_leads_every_table_of_models():
    report = make_report()
    for title in ("Metrics", "By history length", "By item popularity", "Mean ± standard deviation"):
        assert next(iter(cells_of(report, title, "test"))) == YARDSTICK


def test_bins_are_those_of_calibration():
    outcomes, (_, data) = make_outcomes(), make_data()
    report = make_report(outcomes, chosen=MIXED)
    mean, share, count = calibration(outcomes[-1].probability, data["labels"]["test"])
    rows = list(cells_of(report, "Bins", "test").values())
    assert [row[f"Samples, {MIXED}"] for row in rows] == [str(n) for n in count]
    assert [row[f"Mean probability, {MIXED}"] for row in rows] == [number(m, ".3f") for m in mean]
    assert [row[f"Share of likes, {MIXED}"] for row in rows] == [number(s, ".3f") for s in share]
    assert f"Samples, {YARDSTICK}" in rows[0]


def test_seeds_give_mean_and_sample_deviation():
    report = make_report()
    mixed, recent = report.seed_summaries
    aucs = [report.of(model, "test")["AUC"].value for model in (MIXED, RECENT)]
    assert (mixed.mode, mixed.history, mixed.seeds) == ("mixed", "retrieved", (42, 43))
    assert mixed.mean["AUC"] == pytest.approx(sum(aucs) / 2)
    assert mixed.deviation["AUC"] == pytest.approx(abs(aucs[0] - aucs[1]) / math.sqrt(2))
    assert math.isnan(recent.deviation["AUC"])
    cells = cells_of(report, "Mean ± standard deviation", "test")
    assert cells["tuned on mixed"]["AUC"] == f"{number(mixed.mean['AUC'])} ± {number(mixed.deviation['AUC'])}"
    assert cells["tuned on recent"]["AUC"] == number(aucs[1])
    assert make_report(seed_runs=[SeedRun(mode="mixed", seed=1, history="recent", model=MIXED)]).seed_summaries == ()


def test_heterogeneity_and_similarity_tables():
    report = make_report()
    genres = cells_of(report, "Distinct genres", "test")
    assert list(genres) == ["K = 5", "K = 10"]
    assert (genres["K = 5"]["recent"], genres["K = 10"]["retrieved"]) == ("2.50", "3.33")
    assert cells_of(report, "Similarity", "test")["random"]["Mean cosine to the target"] == "0.1250"


def test_json_round_trip_with_null_for_undefined(tmp_path):
    report = make_report(labels={split: np.full(n, True) for split, n in SIZES.items()})
    text = write_ctr_report(report, tmp_path / "new").json.read_text()
    assert "NaN" not in text
    plain = json.loads(text)
    assert plain["scores"][0]["metrics"]["AUC"] == {"value": None, "low": None, "high": None}
    assert plain["curves"][0]["epochs"][0]["loss"] is None
    again = CtrReport.model_validate_json(text)
    assert math.isnan(again.of(MIXED, "test")["AUC"].value)
    assert again.model_dump_json() == report.model_dump_json()


def test_page_is_self_contained_accessible_and_deterministic(tmp_path):
    first, second = (write_ctr_report(make_report(), tmp_path / name) for name in ("first", "second"))
    html = first.html.read_text()
    assert first.html.read_bytes() == second.html.read_bytes()
    assert not re.search(r"<(script|link|img|iframe)\b", html)
    assert not re.search(r'\b(src|href)="(?!#|http://localhost:5000/run")', html)
    assert set(first.plots) == {"metrics", "reliability", "heterogeneity", "training"}
    assert html.count("<svg") == html.count('role="img" aria-label="') == 4
    ids = Counter(re.findall(r'\bid="([^"]+)"', html))
    assert max(ids.values()) == 1
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    for path in first.plots.values():
        assert path.read_bytes().startswith(b"\x89PNG")
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert len(captions) == len(ctr_tables(make_report())) == 2 * (1 + 2 + 3) + 4
    for caption in captions:
        assert re.search(r": toy, (test|validation) split, seeds 42, 43, data version v1", caption)
    assert "<pre>First line.\nSecond line.</pre>" in html
    assert "50 times" in html


def test_sections_without_data_are_left_out(tmp_path):
    empty = dict.fromkeys(("comparisons", "heterogeneity", "similarity", "seed_runs", "curves", "prompts", "notes"), ())
    report = make_report(make_outcomes(models=("only",), splits=("valid",)), yardstick=None, seeds={}, **empty)
    paths = write_ctr_report(report, tmp_path)
    headings = re.findall(r"<h2>(.*?)</h2>", paths.html.read_text())
    assert headings == ["Metrics", "By history length and item popularity", "Calibration", "Definitions"]
    assert set(paths.plots) == {"metrics", "reliability"}
    assert [card.label for card in ctr_cards(report)] == [f"{name}, validation" for name in ("AUC", "LogLoss", "ACC")]
    full = re.findall(r"<h2>(.*?)</h2>", write_ctr_report(make_report(), tmp_path).html.read_text())
    assert len(full) == 4 + len(empty)


def test_hostile_names_are_escaped_everywhere(tmp_path):
    report = make_report(
        make_outcomes(models=(HOSTILE, "b")),
        dataset=HOSTILE,
        data_version=HOSTILE,
        split_rule=HOSTILE,
        seeds={HOSTILE: 1, "b": 2},
        yardstick=HOSTILE,
        comparisons=[(HOSTILE, "b")],
        seed_runs=[SeedRun(mode="mixed", seed=s, history="recent", model=m) for s, m in ((1, HOSTILE), (2, "b"))],
        curves=[TrainingCurve(model=HOSTILE, epochs=(Epoch(epoch=1, loss=1.0),))],
        prompts=[PromptPreview(title=HOSTILE, text="</pre>" + HOSTILE)],
        links=[Link(label=HOSTILE, url='https://x/"><script>')],
        notes=[HOSTILE],
    )
    html = write_ctr_report(report, tmp_path).html.read_text()
    assert "<script" not in html
    assert "\x1b" not in html
    assert "<pre>&lt;/pre&gt;&lt;script&gt;" in html
    assert "<script" not in ctr_markdown_tables(report)
    assert "\x1b" not in ctr_text_tables(report)


def test_markdown_and_text_tables_hold_the_figures():
    report = make_report()
    markdown, text = ctr_markdown_tables(report), ctr_text_tables(report)
    cells = [with_interval(report.of(MIXED, "test")[name]) for name in METRICS]
    assert f"| {MIXED} | 43 | {' | '.join(cells)} |" in markdown
    assert re.search(f"^{MIXED} +43 +" + " +".join(map(re.escape, cells)), text, re.MULTILINE)
    assert f"{MIXED} minus {RECENT}: toy, test split" in text
    assert "Distinct genres" in markdown
    assert "Distinct genres" not in text


def test_an_estimate_is_shown_with_its_interval():
    assert with_interval(Estimate(value=0.744, low=0.7312, high=0.757)) == "0.7440 (0.731 to 0.757)"
    assert with_interval(Estimate(value=math.nan, low=math.nan, high=math.nan)) == "–"


def test_input_is_not_modified():
    outcomes, (_, data) = make_outcomes(), make_data()
    make_report(outcomes, **data)
    for outcome, same in zip(outcomes, make_outcomes(), strict=True):
        np.testing.assert_array_equal(outcome.probability, same.probability)
    for name, by_split in make_data()[1].items():
        for split, values in by_split.items():
            np.testing.assert_array_equal(data[name][split], values)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan])
def test_what_is_no_probability_is_refused(wrong):
    outcomes = make_outcomes()
    outcomes[-1].probability[7] = wrong
    with pytest.raises(InputError, match=rf"{MIXED} on test has 1 probabilities .* the first is {wrong}, of sample 7"):
        make_report(outcomes)


def test_bad_input_is_named():
    outcomes, (_, data) = make_outcomes(), make_data()
    with pytest.raises(InputError, match=rf"{MIXED} on test has probabilities of the shape \(399,\).* 400 labels"):
        make_report([*outcomes[:-1], CtrOutcome(MIXED, "test", outcomes[-1].probability[1:])])
    for name in ("users", "history_length", "target_count"):
        with pytest.raises(InputError, match=rf"{name} of test has the shape \(399,\), but there are 400 labels"):
            make_report(**{name: data[name] | {"test": data[name]["test"][1:]}})
    with pytest.raises(InputError, match="outcomes on test, but users has no values for test"):
        make_report(users={"valid": data["users"]["valid"]})
    with pytest.raises(InputError, match="labels of test have the shape"):
        make_report(labels=data["labels"] | {"test": []})
    with pytest.raises(InputError, match=f"There are two outcomes of {MIXED} on test"):
        make_report([*outcomes, outcomes[-1]])
    with pytest.raises(InputError, match="There are no outcomes"):
        make_report([])
    with pytest.raises(InputError, match=f"{RECENT} and missing cannot be compared"):
        make_report(comparisons=[(RECENT, "missing")])
    with pytest.raises(InputError, match="The yardstick missing has no outcome"):
        make_report(yardstick="missing")
    with pytest.raises(InputError, match=f"The yardstick {YARDSTICK} has no outcome on test"):
        make_report([outcome for outcome in outcomes if (outcome.model, outcome.split) != (YARDSTICK, "test")])
    with pytest.raises(InputError, match="The chosen model missing has no outcome"):
        make_report(chosen="missing")
    run = SeedRun(mode="mixed", seed=42, history="recent", model=MIXED)
    with pytest.raises(InputError, match="There are two runs of mixed on recent with seed 42"):
        make_report(seed_runs=[run, run])
    with pytest.raises(InputError, match="seed 42 names missing, which has no outcome on test"):
        make_report(seed_runs=[run.model_copy(update={"model": "missing"})])


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.01, 0.03, "b beats a by 0.0200 AUC (95% interval 0.0100 to 0.0300)."),
    (-0.03, -0.01, "a beats b by 0.0200 AUC (95% interval 0.0100 to 0.0300)."),
    (-0.03, 0.07, "No difference in AUC between b and a is shown (95% interval -0.0300 to +0.0700)."),
])  # fmt: skip
def test_the_first_sentence_says_who_wins_from_the_winners_side(low, high, expected):
    auc = Estimate(value=(low + high) / 2, low=low, high=high)
    compared = CtrComparison(baseline="a", candidate="b", split="test", differences={"AUC": auc})
    assert summary([compared], "a", "b") == expected
    assert summary([compared], "a", "another") == ""


def test_a_model_below_chance_is_explained_in_the_summary():
    def scores(model, low, high, split="test"):
        return CtrScores(
            model=model, split=split, metrics={"AUC": Estimate(value=(low + high) / 2, low=low, high=high)}
        )

    assert below_chance([scores("a", 0.4, 0.6), scores("b", 0.2, 0.3, "valid")]) == ""
    assert below_chance([scores("a", 0.3, 0.4)]).startswith("a has an AUC below .5, the wrong way round:")
    assert below_chance([scores("a", 0.3, 0.4), scores("b", 0.1, 0.2)]).startswith("a and b have an AUC below .5")
