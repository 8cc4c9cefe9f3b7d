"""`python -m benchmarks.quality.headlines`: write the tables of README.md, docs/ and the pages of results.

A table stands between `<!-- results NAME -->`, where NAME may be followed by a data set, and `<!-- end of results -->`.
Its figures are copied from the records in `benchmarks/results`, never typed. With `--check` nothing is written, and the
exit code is 1 if a table is out of date.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.quality.__main__ import RECORDS
from rarec.reports.records import Effort
from rarec.reports.tables import effort_tables

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[1] / "results"
MARKED = re.compile(r"(<!-- results ([\w -]+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_ESTIMATE = ("value", "low", "high")

CONTROL = "fine-tuned,"  # how the names of RaSeRec's controls begin
UPDATES = {
    "no update": "no update",
    "refresh every week": "refresh",
    "refresh and fine-tune every week": "refresh and fine-tune",
    "retrain every four weeks, refresh between": "full retraining",
}
SPEED = {  # row -> record, figure
    "stage 1 of RaSeRec, an epoch": ("stage1", "ratio of the epochs"),
    "stage 2 of RaSeRec, an epoch": ("stage2", "ratio of the epochs"),
    "full ranking": ("ranking", "ratio"),
    "behaviour retrieval (SUBR), one thread": ("subr", "ratio, ours on one thread"),
    "prompts as tokens": ("prompts", "ratio with tokenising"),
    "scoring prompts": ("scoring", "ratio"),
    "tuning an adapter, an epoch": ("tuning", "ratio"),
}


def ranking(dataset: str, track: str = "raserec") -> str:
    """Test figures of every model, of several runs the mean and the standard deviation."""
    reports = _reports(dataset, track)
    asked = [(protocol, metric) for protocol in ("unmasked", "masked") for metric in ("HR@10", "NDCG@10")]
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for one in (scores for report in reports for scores in report["scores"] if scores["split"] == "test"):
        own = found.setdefault(one["model"], {})
        for metric, value in one["metrics"].items():
            own.setdefault((one["protocol"], metric), []).append(value)
    for one in reports[0]["published"]:
        own = found.setdefault(f"*{one['source']}*", {})
        own |= {(one["protocol"], name): [value] for name, value in one["metrics"].items()}
    header = [f"{reports[0]['dataset']}, test", "HR@10", "NDCG@10", "HR@10 masked", "NDCG@10 masked"]
    return _table(header, ([model, *(_mean(own.get(key, [])) for key in asked)] for model, own in found.items()))


def ndcg(*datasets: str) -> str:
    """Test NDCG@10, all items ranked, of every model on several data sets; of several runs the mean."""
    found: dict[str, dict[str, list[float]]] = {}
    titles = {}
    for dataset in datasets:
        for report in _reports(dataset, "raserec"):
            titles[dataset] = report["dataset"]
            for one in (*report["scores"], *({"model": f"*{p['source']}*", **p} for p in report["published"])):
                if (one["split"], one["protocol"]) == ("test", "unmasked") and "NDCG@10" in one["metrics"]:
                    own = found.setdefault(one["model"], {}).setdefault(dataset, [])
                    own.append(one["metrics"]["NDCG@10"])
    return _by_dataset("NDCG@10, test", titles, {model: own for model, own in found.items() if CONTROL not in model})


def auc(*datasets: str) -> str:
    """Test AUC of the first run's models on several data sets, but for controls and methods fitted on few shots."""
    found: dict[str, dict[str, list[float]]] = {}
    titles = {}
    for dataset in datasets:
        report = _reports(dataset, "rella")[0]
        titles[dataset] = report["dataset"]
        for one in report["scores"]:
            name = one["model"].split(" (seed")[0]
            if one["split"] == "test" and not re.search(r"same shots|random|mixed-", name):
                found.setdefault(name, {}).setdefault(dataset, []).append(one["metrics"]["AUC"]["value"])
    return _by_dataset("AUC, test", titles, found)


def controls(dataset: str) -> str:
    """What each model gains over another in NDCG@10 on the test split, by run, with intervals."""
    runs = _runs(dataset, "raserec")
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for name, run in runs.items():
        for one in run["report"]["causes"]:
            if (one["split"], one["metric"]) == ("test", "NDCG@10"):
                shown = _interval(one["difference"], one["ci_low"], one["ci_high"])
                rows.setdefault((one["candidate"], one["baseline"], one["protocol"]), {})[name] = shown
    shown_rows = ([*pair, *(cells.get(name, "–") for name in runs)] for pair, cells in rows.items())
    return _table(["NDCG@10 of", "minus", "", *runs], shown_rows)


def cost(dataset: str, track: str = "raserec") -> str:
    """What the trainings of the first run took, and how long they needed for a validation figure that all reach."""
    efforts = [Effort.model_validate(one) for one in _reports(dataset, track)[0]["efforts"]]
    (table,) = effort_tables(efforts, "AUC" if track.endswith("rella") else "NDCG@10")
    return _table(list(table.header), map(list, table.rows))


def ctr(dataset: str, track: str = "rella") -> str:
    """Test figures of every model of the first run, and what it was fitted on.

    Of several seeds, the mean and the standard deviation.
    """
    report = _reports(dataset, track)[0]
    figures = ("AUC", "LogLoss", "ACC")
    several = {f"tuned on {one['mode']}, {one['history']}": one for one in report["seed_summaries"]}
    rows: dict[str, list[str]] = {}
    for one in report["scores"]:
        name = one["model"].split(" (seed")[0]
        if one["split"] != "test" or name in rows:
            continue
        if name in several:
            own = several[name]
            cells = [f"{_plain(own['mean'][f])} ({_plain(own['deviation'][f])})" for f in figures]
        else:
            auc = one["metrics"]["AUC"]
            interval = f"{_plain(auc['value'])} ({_plain(auc['low'], 3)} to {_plain(auc['high'], 3)})"
            cells = [interval, *(_plain(one["metrics"][f]["value"]) for f in figures[1:])]
        rows[name] = [report["read"].get(one["model"], ""), *cells]
    return _table(
        [f"{report['dataset']}, test", "fitted on", *figures], ([name, *cells] for name, cells in rows.items())
    )


def ctr_controls(dataset: str) -> str:
    """What retrieval is worth in AUC on the test split of the first run, with intervals."""
    report = _reports(dataset, "rella")[0]
    return _table(
        ["AUC of", "minus", "difference"],
        (
            [one["candidate"], one["baseline"], _interval(*(one["differences"]["AUC"][f] for f in _ESTIMATE))]
            for one in report["causes"]
            if one["split"] == "test"
        ),
    )


def command(dataset: str, track: str) -> str:
    """The commands that give the figures, and when, on what and with which data they were given."""
    runs = _runs(dataset, track)
    told: dict[str, list[str]] = {}
    for name, run in runs.items():
        facts = ", ".join(f"{what} {value}" for what, value in run["machine"].items() if what != "code")
        told.setdefault(f"on: {facts}. Data version {run['report']['data_version']}.", []).append(name)
    lines = [f"    {run['command']}" for run in runs.values()]
    last = max(run["measured"] for run in runs.values())
    where = [f"{', '.join(names)} {text}" for text, names in told.items()] if len(told) > 1 else list(told)
    return "\n".join([*lines, "", f"Measured until {last} {' '.join(where)}"])


def replay() -> str:
    """What each update gained."""
    columns = _record("replay")["replay"]
    difference = "NDCG@10 minus no update"
    return _table(
        ["", "NDCG@10", "minus no update (95 % interval)", "events missed", "updates, s"],
        (
            [
                shown,
                columns[name]["NDCG@10"],
                columns[name][difference] if name != "no update" else "",
                columns[name]["missed"],
                f"{columns[name]['updates, s']:,.1f}",
            ]
            for shown, name in UPDATES.items()
        ),
    )


def speed() -> str:
    """How many times as fast as a plain implementation, the least and the most of the data or models measured."""

    def ratios(record: str, figure: str) -> str:
        found = sorted(column[figure] for column in _record(record)[record].values())
        return f"{found[0]:.3g} to {found[-1]:.3g}"

    return _table(["", "times as fast"], ([shown, ratios(*place)] for shown, place in SPEED.items()))


TABLES: dict[str, Callable[..., str]] = {
    "ranking": ranking,
    "ndcg": ndcg,
    "auc": auc,
    "controls": controls,
    "cost": cost,
    "ctr": ctr,
    "ctr-controls": ctr_controls,
    "command": command,
    "replay": replay,
    "speed": speed,
}


def filled(text: str) -> str:
    """The text with its marked tables as they are recorded now."""

    def table(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}{TABLES[name](*arguments)}\n{found[3]}"

    return MARKED.sub(table, text)


def _runs(dataset: str, track: str) -> dict[str, dict[str, Any]]:
    """The recorded runs of a track of a data set, by name."""
    runs: dict[str, dict[str, Any]] = json.loads((RECORDS / f"{dataset}-{track}.json").read_text())["runs"]
    return runs


def _reports(dataset: str, track: str) -> list[dict[str, Any]]:
    return [run["report"] for run in _runs(dataset, track).values()]


def _by_dataset(figure: str, titles: dict[str, str], found: dict[str, dict[str, list[float]]]) -> str:
    """A row a model, a column a data set."""
    rows = ([model, *(_mean(own.get(dataset, [])) for dataset in titles)] for model, own in found.items())
    return _table([figure, *titles.values()], rows)


def _mean(values: list[float]) -> str:
    """One value, or the mean and the standard deviation (n - 1) of several that differ; a dash for none."""
    if not values:
        return "–"
    return _plain(values[0]) if len(set(values)) == 1 else f"{_plain(mean(values))} ({_plain(stdev(values))})"


def _plain(value: float | None, digits: int = 4) -> str:
    """A share without its leading zero."""
    return "–" if value is None else f"{value:.{digits}f}".replace("0.", ".", 1)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})".replace("0.", ".")


def _record(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    return results


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False) -> None:
    """Bring the tables of README.md, docs/ and the pages of results up to date."""
    texts = {
        file: file.read_text()
        for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(RESULTS.glob("*.md")))
    }
    stale = {file: new for file, text in texts.items() if (new := filled(text)) != text}
    if check and stale:
        names = ", ".join(str(file.relative_to(ROOT)) for file in stale)
        raise SystemExit(f"error: results are out of date in {names}; run python -m benchmarks.quality.headlines")
    for file, new in stale.items():
        file.write_text(new)


if __name__ == "__main__":
    typer.run(main)
