"""Figures of whole runs: what is kept of a report, and the tables that are written from it."""

import json

import pytest
from ctr_report_toys import make_report as make_ctr_report
from ranking_report_toys import make_outcomes, make_report

from benchmarks.quality import __main__ as quality
from benchmarks.quality import headlines


@pytest.fixture
def records(tmp_path, monkeypatch):
    for module in (quality, headlines):
        monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    return tmp_path


def record(folder, monkeypatch, track, report, name="seed 42", config="{}"):
    place = folder / quality.REPORTS[track] / "toy" / name
    place.mkdir(parents=True)
    (place / "report.json").write_text(report.model_dump_json())
    lines = ("other line", f"report: {place / 'report.html'}")
    monkeypatch.setattr(quality, "run", lambda *_: (0, list(lines)))
    quality.main("toy", track, name, config, "../data")


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_runs_are_kept_by_name_and_their_mean_is_shown(records, monkeypatch):
    pairs = (("pre-trained", "fine-tuned"),)
    reports = [make_report(make_outcomes(seed=seed), controls=pairs) for seed in (0, 1)]
    for seed, report in zip((42, 43), reports, strict=True):
        config = json.dumps({"raserec_pretrained": {"seed": seed}})
        record(records, monkeypatch, "raserec", report, f"seed {seed}", config)
    kept = json.loads((records / "records" / "toy-raserec.json").read_text())["runs"]
    assert list(kept) == ["seed 42", "seed 43"]
    assert kept["seed 43"]["command"] == (
        'make run TRACK=raserec DATASET=toy RAREC_DATA=../data CONFIG=\'{"raserec_pretrained": {"seed": 43}}\''
    )
    assert "groups" not in kept["seed 42"]["report"]
    assert not any(one["group"] for one in kept["seed 42"]["report"]["comparisons"])
    values = [
        next(s.metrics["HR@10"] for s in report.scores
             if (s.model, s.split, s.protocol) == ("fine-tuned", "test", "unmasked"))
        for report in reports
    ]  # fmt: skip
    mean = f"{sum(values) / 2:.4f}".replace("0.", ".", 1)
    header, _, *rows = cells(headlines.ranking("toy"))
    assert header == ["toy, test", "HR@10", "NDCG@10", "HR@10 masked", "NDCG@10 masked"]
    assert next(row for row in rows if row[0] == "fine-tuned")[1].startswith(f"{mean} (")
    assert ["*a paper*", "–", ".1234", "–", "–"] in rows
    header, _, *rows = cells(headlines.controls("toy"))
    assert header[-2:] == ["seed 42", "seed 43"]
    own = next(c for c in reports[1].causes if (c.split, c.protocol, c.metric) == ("test", "unmasked", "NDCG@10"))
    assert rows[0][:3] == ["fine-tuned", "pre-trained", "unmasked"]
    assert rows[0][4].startswith(f"{own.difference:+.4f}".replace("0.", "."))


def test_click_models_are_shown_with_what_they_were_fitted_on(records, monkeypatch):
    report = make_ctr_report()
    record(records, monkeypatch, "rella", report)
    header, _, *rows = cells(headlines.ctr("toy"))
    assert header[1:] == ["fitted on", "AUC", "LogLoss", "ACC"]
    assert {row[0] for row in rows} == {model.split(" (seed")[0] for model in report.models if report.of(model, "test")}


def test_a_marked_table_is_written_for_the_data_set_that_it_names(records, monkeypatch):
    record(records, monkeypatch, "raserec", make_report())
    text = "# Page\n<!-- results ranking toy -->\nold\n<!-- end of results -->\nrest\n"
    filled = headlines.filled(text)
    assert "old" not in filled
    assert headlines.ranking("toy") in filled
    assert headlines.filled(filled) == filled


def test_every_record_has_a_page_with_its_command_and_its_table():
    pages = "".join(page.read_text() for page in headlines.RESULTS.glob("*.md"))
    files = sorted(headlines.RECORDS.glob("*.json"))
    assert files
    for file in files:
        track = next(
            track for track in sorted(quality.REPORTS, key=len, reverse=True) if file.stem.endswith(f"-{track}")
        )
        dataset = file.stem.removesuffix(f"-{track}")
        table = "ctr" if "ctr" in quality.REPORTS[track] else "ranking"
        own = dataset if track in ("raserec", "rella") else f"{dataset} {track}"
        for marker in (f"<!-- results command {dataset} {track} -->", f"<!-- results {table} {own} -->"):
            assert marker in pages, f"{file.name} is shown on no page: {marker}"


def test_a_run_without_the_report_keeps_nothing(records, monkeypatch):
    monkeypatch.setattr(quality, "run", lambda *_: (0, ["report: /elsewhere/report.html"]))
    with pytest.raises(SystemExit, match="rella has printed no report of ctr_metrics"):
        quality.main("toy", "rella", "seed 42", "{}", "../data")
    with pytest.raises(SystemExit, match="TRACK must be one of raserec, rella, peers, peers_rella, not 'all'"):
        quality.main("toy", "all", "seed 42", "{}", "../data")
    assert not (records / "records").exists()
