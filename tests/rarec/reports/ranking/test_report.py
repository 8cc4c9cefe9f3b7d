import json
import math
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from ranking_report_toys import N_ITEMS, N_USERS, make_outcomes, make_report

from rarec.errors import InputError
from rarec.metrics.ranking import ranking_table
from rarec.reports.ranking.plots import _group_plots
from rarec.reports.ranking.report import (
    Epoch,
    Link,
    Published,
    RankingCurve,
    RankingOutcome,
    RankingReport,
    markdown_tables,
    text_tables,
    write_report,
)
from rarec.reports.ranking.tables import report_tables, summary
from rarec.reports.tables import number, p_value

HOSTILE = '<script>alert("x")</script> | `a` ]]> -- $x$ \x1b[31m'


def test_figures_are_those_of_the_ranks():
    outcomes = make_outcomes()
    report = make_report(outcomes)
    assert report.models == ("pre-trained", "fine-tuned")
    assert report.splits == ["test", "valid"]
    assert len(report.scores) == 2 * 2 * 2
    first = report.scores[0]
    assert (first.model, first.split, first.protocol, first.n_users) == ("pre-trained", "valid", "unmasked", 59)
    assert first.metrics == ranking_table(outcomes[0].ranking.rank)
    assert report.scores[1].metrics == ranking_table(outcomes[0].ranking.rank_masked)
    assert [stats.n for stats in report.recommended] == [10] * 8


def test_groups_and_comparisons_add_up_to_the_scores():
    report = make_report()
    for scores in report.scores:
        of_model = [
            g for g in report.groups if (g.model, g.split, g.protocol) == (scores.model, scores.split, scores.protocol)
        ]
        for grouping in ("item popularity", "user activity"):
            groups = [g for g in of_model if g.grouping == grouping]
            assert sum(g.n_users for g in groups) == scores.n_users
            total = sum(g.n_users * g.metrics["NDCG@10"] for g in groups if g.n_users)
            assert total / scores.n_users == pytest.approx(scores.metrics["NDCG@10"])
    by_key = {(s.model, s.split, s.protocol): s.metrics for s in report.scores}
    groups = {(g.model, g.split, g.protocol, g.grouping, g.group): g.metrics for g in report.groups}
    assert len(report.comparisons) == 2 * 2 * (3 + 2 * 6)
    for c in report.comparisons:
        if c.group:
            place = (c.split, c.protocol, c.grouping, c.group)
            means = (groups["pre-trained", *place][c.metric], groups["fine-tuned", *place][c.metric])
            assert (c.baseline_mean, c.candidate_mean) == pytest.approx(means, nan_ok=True)
            continue
        expected = (
            by_key["fine-tuned", c.split, c.protocol][c.metric] - by_key["pre-trained", c.split, c.protocol][c.metric]
        )
        assert c.difference == pytest.approx(expected)
        assert c.ci_low <= c.difference <= c.ci_high


def test_json_round_trip_with_null_for_undefined(tmp_path):
    report = make_report()
    paths = write_report(report, tmp_path / "new" / "folder")
    text = paths.json.read_text()
    assert "NaN" not in text
    plain = json.loads(text)
    assert plain["curves"][0]["epochs"][1]["loss"] is None
    assert [g["metrics"]["HR@5"] for g in plain["groups"] if g["group"] == "medium"] == [None] * 8
    assert {scores["split"] for scores in plain["scores"]} == {"validation", "test"}  # by their full names
    again = RankingReport.model_validate_json(text)
    assert {scores.split for scores in again.scores} == {"valid", "test"}
    assert math.isnan(again.curves[0].epochs[1].loss)
    assert again.model_dump_json() == report.model_dump_json()


def test_page_shows_every_figure_to_four_decimals_and_its_provenance(tmp_path):
    report = make_report()
    html = write_report(report, tmp_path).html.read_text()
    for scores in report.scores:
        for value in scores.metrics.values():
            assert f"<td>{value:.4f}</td>" in html
    for c in report.comparisons:
        if c.n_users == 0:  # of a group that holds nobody
            continue
        assert f"{c.difference:+.4f}" in html
        assert f"{c.ci_low:+.4f} to {c.ci_high:+.4f}" in html
    assert "0.1234" in html
    assert "published: a paper" in html
    assert "<td>–</td>" in html
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL).lower()
    captions = re.findall(r"<caption>(.*?)</caption>", html)
    assert len(captions) == len(report_tables(report)) == 4 * (1 + 1 + 2 + 2 + 1)
    for caption in captions:
        assert re.search(r": toy, (test|validation) split, (un)?masked, seed 42, data version v1", caption)


def test_page_is_self_contained_and_accessible(tmp_path):
    html = write_report(make_report(), tmp_path).html.read_text()
    assert not re.search(r"<(script|link|img|iframe)\b", html)
    assert not re.search(r'\b(src|href)="(?!#|http://localhost:5000/run")', html)
    assert html.count("<svg") == html.count('role="img" aria-label="') == 4
    assert "<th>" not in html
    ids = Counter(re.findall(r'\bid="([^"]+)"', html))
    assert ids
    assert max(ids.values()) == 1
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', html):
        assert reference in ids
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_plots_are_png_files_and_everything_is_deterministic(tmp_path):
    first, second = (write_report(make_report(), tmp_path / name) for name in ("first", "second"))
    assert set(first.plots) == {"metrics", "item_popularity", "user_activity", "training"}
    for name, path in first.plots.items():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes() == second.plots[name].read_bytes()
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.json.read_bytes() == second.json.read_bytes()


def test_hostile_names_are_escaped_everywhere(tmp_path):
    outcomes = make_outcomes(models=(HOSTILE, "b"))
    report = make_report(
        outcomes,
        dataset=HOSTILE,
        data_version=HOSTILE,
        split_rule=HOSTILE,
        comparisons=[(HOSTILE, "b")],
        published=[Published(source=HOSTILE, split="test", protocol="masked", metrics={})],
        links=[Link(label=HOSTILE, url='https://x/"><script>')],
        notes=[HOSTILE],
        curves=[RankingCurve(model=HOSTILE, protocol="masked", epochs=(Epoch(epoch=1, loss=1.0),))],
    )
    html = write_report(report, tmp_path).html.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html
    markdown = markdown_tables(report)
    assert "<script" not in markdown
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("| Metric")}
    assert widths == {10}
    assert "\x1b" not in text_tables(report)


def test_links_must_be_web_addresses():
    with pytest.raises(ValidationError, match="url"):
        Link(label="x", url="javascript:alert(1)")


def test_markdown_and_text_tables_hold_the_figures():
    report = make_report()
    markdown, text = markdown_tables(report), text_tables(report)
    scores = report.scores[-1]
    row = " | ".join(f"{value:.4f}" for value in scores.metrics.values())
    assert f"| fine-tuned | 59 | {row} |" in markdown
    assert re.search(r"^fine-tuned +59  " + r" +".join(f"{value:.4f}" for value in scores.metrics.values()), text, re.M)
    assert "Ranking metrics: toy, test split, masked, seed 42, data version v1" in text
    assert markdown.index("test split") < markdown.index("validation split")


def test_number_formats():
    assert number(1 / 3) == "0.3333"
    assert number(math.nan) == "–"
    assert (p_value(0.00001), p_value(0.05), p_value(math.nan)) == ("<0.0001", "0.0500", "–")


def test_report_without_comparison_curves_or_lists(tmp_path):
    outcomes = [
        RankingOutcome(o.model, o.split, o.targets, type(o.ranking)(o.ranking.rank, o.ranking.rank_masked))
        for o in make_outcomes(models=("only",), splits=("valid",))
    ]
    report = make_report(outcomes, comparisons=(), curves=(), published=(), links=(), notes=())
    paths = write_report(report, tmp_path)
    html = paths.html.read_text()
    assert set(paths.plots) == {"metrics", "item_popularity", "user_activity"}
    assert "What is recommended" not in html
    assert "significant" not in html
    assert f'<span class="value">{report.scores[0].metrics["HR@10"]:.4f}</span>' in html


def test_input_is_not_modified():
    outcomes = make_outcomes()
    counts, lengths = np.arange(N_ITEMS), np.full(N_USERS, 3)
    copies = [outcome.ranking.rank.clone() for outcome in outcomes]
    make_report(outcomes, training_counts=counts, training_lengths=lengths)
    assert all(torch.equal(o.ranking.rank, copy) for o, copy in zip(outcomes, copies, strict=True))
    assert (counts == np.arange(N_ITEMS)).all()
    assert (lengths == 3).all()


def test_bad_outcomes_are_clear_errors():
    outcomes = make_outcomes()
    with pytest.raises(InputError, match="60 targets and 60 ranks, but there are 59 users"):
        make_report(outcomes, training_lengths=np.full(N_USERS - 1, 3))
    with pytest.raises(InputError, match="There are two outcomes of pre-trained on valid"):
        make_report([outcomes[0], outcomes[0]])
    with pytest.raises(InputError, match="fine-tuned has other targets on test"):
        make_report(
            [outcomes[2], RankingOutcome("fine-tuned", "test", outcomes[3].targets.flip(0), outcomes[3].ranking)]
        )
    with pytest.raises(InputError, match="pre-trained and missing cannot be compared"):
        make_report(outcomes, comparisons=[("pre-trained", "missing")])


def test_no_bar_is_cut_off_when_one_panel_is_higher_than_the_other():
    report = make_report()
    groups = tuple(
        group.model_copy(update={"metrics": dict.fromkeys(group.metrics, 0.9 if group.protocol == "masked" else 0.1)})
        for group in report.groups
    )
    for *_, figure in _group_plots(report.model_copy(update={"groups": groups})):
        for axes in figure.axes:
            low, high = axes.get_ylim()
            assert low == 0
            assert max(bar.get_height() for bar in axes.patches) < high


def test_controls_share_one_table_that_says_what_retrieval_is_worth():
    models = ("pre-trained", "fine-tuned", "a control")
    pairs = (("pre-trained", "fine-tuned"), ("pre-trained", "a control"), ("a control", "fine-tuned"))
    report = make_report(make_outcomes(models), controls=pairs)
    assert len(report.causes) == 3 * 2 * 2 * 2  # pairs, splits, protocols, metrics
    means = {(s.model, s.split, s.protocol): s.metrics for s in report.scores}
    for one in report.causes:
        place = (one.split, one.protocol)
        assert not one.group
        expected = means[one.candidate, *place][one.metric] - means[one.baseline, *place][one.metric]
        assert one.difference == pytest.approx(expected)
    tables = [table for table in report_tables(report) if table.section == "controls"]
    assert len(tables) == 4
    assert [row[:2] for row in tables[0].rows] == [pair[::-1] for pair in pairs]
    excluded = {}
    for row in tables[0].rows:
        own = [
            one for one in report.causes
            if (one.candidate, one.baseline, one.split, one.protocol) == (*row[:2], "test", "unmasked")
        ]  # fmt: skip
        excluded[row[:2]] = all(one.ci_low > 0 for one in own)
        assert (row[2] == "exclude 0: better") == excluded[row[:2]]
    assert set(excluded.values()) == {True, False}
    assert "What retrieval is worth" in text_tables(report)
    assert not make_report().causes


@pytest.mark.parametrize(("intervals", "expected"), [
    ([(0.1, 0.2), (0.1, 0.3)], "exclude 0: better"),
    ([(-0.2, -0.1), (-0.3, -0.1)], "exclude 0: worse"),
    ([(-0.2, 0.1), (-0.3, 0.1)], "include 0"),
    ([(-0.2, 0.1), (0.1, 0.2)], "one includes 0"),
    ([(-0.2, -0.1), (0.1, 0.2)], "exclude 0 on both sides"),
])  # fmt: skip
def test_a_control_s_row_says_what_its_intervals_say(intervals, expected):
    pairs = (("pre-trained", "fine-tuned"),)
    report = make_report(make_outcomes(("pre-trained", "fine-tuned")), controls=pairs)
    shown = iter(intervals * (len(report.causes) // 2))
    causes = tuple(
        one.model_copy(update=dict(zip(("ci_low", "ci_high"), next(shown), strict=True))) for one in report.causes
    )
    told = report_tables(report.model_copy(update={"causes": causes}))
    assert {row[2] for table in told if table.section == "controls" for row in table.rows} == {expected}


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.01, 0.03, "Unmasked, b beats a by 0.0200 NDCG@10 (95% interval +0.0100 to +0.0300)."),
    (-0.03, -0.01, "Unmasked, a beats b by 0.0200 NDCG@10 (95% interval 0.0100 to 0.0300)."),
    (-0.03, 0.07, "Unmasked, no difference between b and a is shown in NDCG@10 (95% interval -0.0300 to +0.0700)."),
])  # fmt: skip
def test_the_first_sentence_says_who_wins_from_the_winners_side(low, high, expected):
    report = make_report()
    (one,) = (
        c for c in report.comparisons
        if (c.split, c.protocol, c.metric, c.group) == ("test", "unmasked", "NDCG@10", "")
    )  # fmt: skip
    changed = one.model_copy(
        update={"baseline": "a", "candidate": "b", "difference": (low + high) / 2, "ci_low": low, "ci_high": high}
    )
    assert summary([changed]) == expected
