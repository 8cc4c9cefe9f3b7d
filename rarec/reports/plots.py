"""Plots of the reports: PNG for files, and SVG in the page's colours for the page."""

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rarec.reports.records import Report, TrainingCurve
from rarec.reports.tables import number

if TYPE_CHECKING:  # Matplotlib takes a second to load, and the code location draws nothing.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the SVG, the page's own colours replace ink and rule. The others work on light and dark backgrounds.
INK, RULE = "#1f2429", "#d9dde2"
MOST_LEVEL_LABELS = 8  # most bars of half a page with horizontal labels; with more, labels are vertical
COLOURS = (
    "#4c8bd6", "#e2853b", "#4fa66a", "#b465c0", "#c9a227", "#5aa9b5",
    "#8c6d5a", "#d66b8f", "#7a8b99", "#3d5a9e", "#8fb339", "#a33b3b",
)  # fmt: skip
AnyReport = TypeVar("AnyReport", bound=Report)


@dataclass(frozen=True)
class Plot:
    """One finished plot."""

    name: str
    """File name without extension."""
    section: str
    """Section of the page it belongs to, as in `tables.Table`."""
    title: str
    description: str
    """What the plot shows, in words and figures: the text alternative."""
    png: bytes
    svg: str
    """An <svg> element without a size, for inlining."""


class Drawing(NamedTuple):
    """A drawn figure that is not yet a `Plot`."""

    name: str
    section: str
    title: str
    description: str
    figure: "Figure"


def finish(report: AnyReport, *makers: Callable[[AnyReport], Iterator[Drawing]]) -> list[Plot]:
    """All drawings that the makers make of the report, as plots."""
    plots = []
    with style():
        for maker in makers:
            for name, section, title, description, figure in maker(report):
                svg = _svg(figure, name)
                # On the page, the title is in the caption; the file needs its own.
                figure.suptitle(f"{title}\n{report.dataset}, {report.seed_text}, data version {report.data_version}")
                plots.append(Plot(name, section, title, description, _png(figure), svg))
    return plots


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of all plots."""
    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": RULE,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.hashsalt": "rarec",
        "text.parse_math": False,
    }
    import matplotlib as mpl

    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bars(
    axes: "Axes", models: Sequence[str], places: Sequence[str], values: Mapping[tuple[str, str], float], metric: str
) -> list[str]:
    """Draw one bar per model at each place, labelled with its value; return the same in words.

    `values` maps (model, place) to the metric.
    """
    width = 0.8 / max(len(models), 1)
    crowded = len(models) * len(places) > MOST_LEVEL_LABELS
    words = []
    for m, model in enumerate(models):
        heights = [values.get((model, place), math.nan) for place in places]
        offsets = [p + (m - (len(models) - 1) / 2) * width for p in range(len(places))]
        drawn = axes.bar(offsets, heights, 0.92 * width, color=COLOURS[m % len(COLOURS)], label=model)
        axes.bar_label(
            drawn, labels=[number(height) for height in heights], fontsize=8, padding=2, rotation=90 if crowded else 0
        )
        words += [f"{model}, {place}: {metric} {number(h)}" for place, h in zip(places, heights, strict=True)]
    axes.set_ylabel(metric)
    axes.margins(y=0.28 if crowded else 0.14)
    return words


def curve_drawing(curves: Sequence[TrainingCurve], metrics: Sequence[str]) -> Iterator[Drawing]:
    """Training loss and validation metrics by epoch, one row per model, with the best epoch marked.

    The validation metrics in `metrics` are shown, or the first two if a curve has none of them.
    """
    from matplotlib.ticker import MaxNLocator

    curves = [curve for curve in curves if curve.epochs]
    if not curves:
        return
    figure = new_figure(10, 0.6 + 3.0 * len(curves))
    words = []
    for (left, right), curve in zip(figure.subplots(len(curves), 2, squeeze=False), curves, strict=True):
        epochs = [point.epoch for point in curve.epochs]
        marker = "o" if len(epochs) < 30 else ""
        left.plot(epochs, [point.loss for point in curve.epochs], color=COLOURS[0], marker=marker, markersize=3)
        left.set_ylabel("training loss")
        names = list(dict.fromkeys(name for point in curve.epochs for name in point.validation))
        shown = [name for name in metrics if name in names] or names[:2]
        for name, colour in zip(shown, COLOURS[1:], strict=False):
            values = [point.validation.get(name, math.nan) for point in curve.epochs]
            right.plot(epochs, values, color=colour, marker=marker, markersize=3, label=name)
        right.set_ylabel(curve.validation_label)
        for axes in (left, right):
            axes.set_title(curve.model)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if curve.best_epoch is not None:
                axes.axvline(curve.best_epoch, color=INK, linewidth=1, linestyle="dashed", label="epoch kept")
        if right.get_legend_handles_labels()[0]:
            right.legend(fontsize=8)
        words.append(
            f"{curve.model}: {len(epochs)} epochs, loss from {number(curve.epochs[0].loss)} "
            f"to {number(curve.epochs[-1].loss)}"
            + (f", epoch {curve.best_epoch} kept" if curve.best_epoch is not None else "")
        )
    yield Drawing(
        "training", "training", "Training loss and validation metrics", f"Line chart. {'; '.join(words)}.", figure
    )


def legend(figure: "Figure", columns: int = 5) -> None:
    """One legend below all panels, with each label once."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), columns))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def _svg(figure: "Figure", name: str) -> str:
    """The figure as an <svg> element with the page's colours, and with ids that are unique on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(RULE, "var(--rule)")
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    return re.sub(r'^<svg ([^>]*?)\b(?:width|height)="[^"]*"', r"<svg \1", text, count=1)
