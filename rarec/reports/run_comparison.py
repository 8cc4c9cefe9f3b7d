"""Recorded runs side by side: what was set, what came of it, from which data; as records and as one page."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Drawn
from matplotlib.ticker import MaxNLocator
from PIL import Image
from pydantic import Field

from rarec.reports.page import ReportPaths, write_page
from rarec.reports.plots import COLOURS, Drawing, Plot, finish
from rarec.reports.records import Figure, Link, Record, Report, Text
from rarec.reports.tables import UNDEFINED, Card, Table, number

BEST = " *"  # behind the best figure of a row
MORE_IS_BETTER = ("hr", "ndcg", "mrr", "auc", "acc", "recall", "samples_per_s", "tokens_per_s", "prompts_per_s")
LESS_IS_BETTER = ("loss", "seconds", "memory", "missed", "unknown")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGEST = 12  # characters of a data version shown
DIFFERS = "differs"
WIDTHS = (4.0, 1.2)  # of the first and the last run's line, so that none hides another of the same course

Pictures = dict[str, dict[int, bytes]]
"""Plots that runs have logged: for each name, the PNG of each run that has it, by the run's place."""


class Curve(Record):
    """The course of one metric."""

    steps: tuple[int, ...]
    values: tuple[Figure, ...]


class ComparedRun(Record):
    """One run as it was recorded."""

    run_id: Text
    name: Text
    asset: Text
    dataset: Text
    status: Text
    started: Text
    seconds: Figure
    fingerprint: Text
    code_version: Text = Field(default="", description="Of the asset that made it.")
    params: dict[Text, Text]
    metrics: dict[Text, Figure]
    inputs: dict[Text, Text] = Field(default={}, description="Data version of what it read, by name.")
    curves: dict[Text, Curve] = Field(default={}, description="Of each metric.")
    url: str = ""


class RunComparison(Report):
    """Two runs or more, the first of which the others are set against."""

    runs: tuple[ComparedRun, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """What each run is called in tables and plots."""
        return tuple(LETTERS[: len(self.runs)])


def compare_runs(runs: Sequence[ComparedRun]) -> RunComparison:
    """The report; at most as many runs as there are letters."""
    return RunComparison(
        dataset=", ".join(dict.fromkeys(run.dataset for run in runs)),
        data_version=_data_version([run.inputs for run in runs]),
        seeds={
            letter: int(run.params["seed"])
            for letter, run in zip(LETTERS, runs, strict=False)
            if run.params.get("seed", "").isdigit()
        },
        split_rule="each run's own, as recorded",
        models=tuple(run.name for run in runs),
        links=tuple(
            Link(label=f"{letter}: {run.name}", url=run.url)
            for letter, run in zip(LETTERS, runs, strict=False)
            if run.url.startswith("http")
        ),
        runs=tuple(runs),
    )


def _data_version(inputs: Sequence[Mapping[str, str]]) -> str:
    """Whether the runs had the same data, as far as they read the same inputs."""
    if not any(inputs):
        return "not recorded"
    if not set.intersection(*(set(one) for one in inputs)):
        return "no input in common"
    return "not the same for all" if DIFFERS in {_verdict(row[1:]) for row in _rows(inputs)} else "the same for all"


def _verdict(versions: Sequence[str]) -> str:
    known = [version for version in versions if version != UNDEFINED]
    if len(set(known)) > 1:
        return DIFFERS
    return "same" if len(known) == len(versions) else "not read by all"


def comparison_cards(report: RunComparison) -> list[Card]:
    """One a run."""
    return [
        Card(
            f"Run {letter}",
            run.asset or run.name,
            (run.name, f"{run.status}, {run.started}", f"{number(run.seconds, ',.0f')} s"),
        )
        for letter, run in zip(report.letters, report.runs, strict=True)
    ]


def comparison_tables(report: RunComparison) -> list[Table]:
    """Settings that differ, figures, last values of courses, inputs, and settings that do not differ."""
    version = [{"code": f"{run.asset} {run.code_version}"} if run.code_version else {} for run in report.runs]
    settings = _rows(version) + _rows([run.params for run in report.runs])
    differ = [row for row in settings if len(set(row[1:])) > 1]
    same = [row[:2] for row in settings if len(set(row[1:])) == 1]
    inputs = [
        (name, *(value[:DIGEST] for value in values), _verdict(values))
        for name, *values in _rows([run.inputs for run in report.runs])
    ]
    others = report.letters[1:]
    where = " and ".join(f"{letter} = {run.name}" for letter, run in zip(report.letters, report.runs, strict=True))
    header = (*report.letters, *(f"{letter} - A" for letter in others))
    figures = list(_figures([run.metrics for run in report.runs]))
    courses = set(_courses(report))
    single, last = ([row for row in figures if (row[0] in courses) == of_course] for of_course in (False, True))
    columns = len(report.runs) + 1
    return [
        Table("differ", "Settings that differ", where, ("Setting", *report.letters), tuple(differ), columns),
        Table("figures", "Figures", where, ("Figure", *header), tuple(single)),
        Table("last", "Last values of the courses", where, ("Course", *header), tuple(last)),
        Table("inputs", "Inputs", where, ("Input", *report.letters, ""), tuple(inputs), columns + 1),
        Table("same", "Settings in common", where, ("Setting", "Value"), tuple(same), 2),
    ]


def _rows(values: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    names = sorted({name for one in values for name in one})
    return [(name, *(one.get(name, UNDEFINED) for one in values)) for name in names]


def _figures(metrics: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for name in sorted({name for one in metrics for name in one}):
        values = [one.get(name, math.nan) for one in metrics]
        best = _best(name, values)
        cells = [_short(value) + (BEST if best is not None and value == best else "") for value in values]
        differences = [value - values[0] for value in values[1:]]
        yield (name, *cells, *(number(d, "+,.0f" if abs(d) >= 1000 else "+.4g") for d in differences))


def _best(name: str, values: Sequence[float]) -> float | None:
    """The best of a metric's values; None where nobody can tell what is good, or all are alike."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2 or len(set(known)) == 1:
        return None
    words = name.lower().replace("@", "_").replace("/", "_").replace(" ", "_")
    parts = words.split("_")
    if any(sign in words for sign in LESS_IS_BETTER) or "ece" in parts:
        return min(known)
    if any(sign in parts or (sign in words and "_per_" in sign) for sign in MORE_IS_BETTER):
        return max(known)
    return None


def _short(value: float) -> str:
    return number(value, ",.0f" if abs(value) >= 1000 else ".5g")


def _courses(report: RunComparison) -> list[str]:
    return sorted({name for run in report.runs for name, curve in run.curves.items() if len(curve.steps) > 1})


def curve_drawings(report: RunComparison) -> Iterator[Drawing]:
    """Each metric that has a course, of all runs that have it."""
    for name in _courses(report):
        figure = Drawn(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        widths = np.linspace(*WIDTHS, len(report.runs))
        words = []
        for place, (letter, run) in enumerate(zip(report.letters, report.runs, strict=True)):
            curve = run.curves.get(name)
            if curve is None or len(curve.steps) < 2:
                continue
            marker = "o" if len(curve.steps) < 30 else ""
            colour = COLOURS[place % len(COLOURS)]
            thick = {"linewidth": widths[place], "markersize": widths[place] + 2}
            axes.plot(curve.steps, curve.values, color=colour, marker=marker, label=letter, **thick)
            words.append(f"{letter} from {number(curve.values[0])} to {number(curve.values[-1])}")
        axes.set_ylabel(name)
        axes.set_xlabel("epoch or step, as recorded")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8)
        file = "course-" + "".join(c if c.isalnum() else "-" for c in name)
        yield Drawing(file, "curves", name, f"Line chart. {'; '.join(words)}.", figure)


def _picture_plots(report: RunComparison, pictures: Pictures) -> Iterator[Plot]:
    for place_of_name, (name, by_run) in enumerate(sorted(pictures.items())):
        for place, png in sorted(by_run.items()):
            letter = report.letters[place]
            with Image.open(io.BytesIO(png)) as picture:
                width, height = picture.size
            data = base64.b64encode(png).decode()
            svg = (
                f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">'
                f'<image href="data:image/png;base64,{data}" width="{width}" height="{height}"/></svg>'
            )
            title = f"{letter}: {name}"
            yield Plot(f"{letter}-{place_of_name}", "pictures", title, f"Logged by {report.runs[place].name}", png, svg)


def write_comparison(report: RunComparison, pictures: Pictures, folder: Path) -> ReportPaths:
    """Write `report.json`, `report.html` and the plots into ``folder``."""
    plots = [*finish(report, curve_drawings), *_picture_plots(report, pictures)]
    return write_page(folder, "runs.html", report, comparison_cards(report), comparison_tables(report), plots)
