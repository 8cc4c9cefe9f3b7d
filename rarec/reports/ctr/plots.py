"""The plots of the CTR report."""

from collections.abc import Iterator

from rarec.reports.ctr.records import CtrReport
from rarec.reports.ctr.tables import ordered_models, with_interval
from rarec.reports.plots import COLOURS, INK, Drawing, Plot, curve_drawing, finish, legend, new_figure
from rarec.reports.records import SPLIT_NAMES
from rarec.reports.tables import number

PLOTTED = ("AUC", "LogLoss")
LINES = ("solid", "dashed", "dotted", "dashdot")  # with the colours, for more models than there are colours


def ctr_plots(report: CtrReport) -> list[Plot]:
    """All plots for which the report has data."""
    return finish(
        report,
        _metric_plot,
        _reliability_plot,
        _heterogeneity_plot,
        lambda report: curve_drawing(report.curves, ("AUC",)),
    )


def _metric_plot(report: CtrReport) -> Iterator[Drawing]:
    """AUC and LogLoss of each model with intervals, one line per model, and the yardstick as a vertical line."""
    split = report.splits[0]
    models = ordered_models(report, split)
    figure = new_figure(10, 1.2 + 0.36 * len(models))
    words = []
    for axes, name in zip(figure.subplots(1, len(PLOTTED), sharey=True), PLOTTED, strict=True):
        estimates = [report.of(model, split)[name] for model in models]
        for place, one in enumerate(estimates):
            axes.plot([one.low, one.high], [place, place], color=COLOURS[0], linewidth=2)
            axes.plot(one.value, place, "o", color=COLOURS[0], markersize=5)
            axes.annotate(
                number(one.value), (one.value, place), (0, 5), textcoords="offset points", ha="center", fontsize=8
            )
        if models[0] == report.yardstick:
            axes.axvline(estimates[0].value, color=INK, alpha=0.4, linewidth=1, linestyle="dashed", zorder=0)
        axes.set_yticks(range(len(models)), models)
        axes.set_ylim(len(models) - 0.5, -0.7)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.margins(x=0.08)
        axes.set_xlabel(f"{name} ({'higher' if name == 'AUC' else 'lower'} is better)")
        words += [f"{model}: {name} {with_interval(one)}" for model, one in zip(models, estimates, strict=True)]
    title = f"AUC and LogLoss on the {SPLIT_NAMES[split]} split with 95% intervals over users"
    yield Drawing("metrics", "scores", title, f"Dot plot. {'; '.join(words)}.", figure)


def _reliability_plot(report: CtrReport) -> Iterator[Drawing]:
    """Share of likes by mean probability, one line per model; and the share of samples in each bin."""
    split = report.splits[0]
    of_model = {own.model: own.bins for own in report.calibrations if own.split == split}
    figure = new_figure(10, 5)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="dotted", label="perfectly calibrated")
    words = []
    others = [model for model in report.models if model in of_model and model != report.yardstick]
    looks = {
        model: (COLOURS[n % len(COLOURS)], LINES[n // len(COLOURS) % len(LINES)]) for n, model in enumerate(others)
    }
    for model in ordered_models(report, split):
        colour, line = looks.get(model, (INK, "dashed"))
        bins = [one for one in of_model[model] if one.n_samples]
        left.plot(
            [one.mean_probability for one in bins], [one.likes for one in bins],
            color=colour, linestyle=line, marker="o", markersize=3, label=model,
        )  # fmt: skip
        total = sum(one.n_samples for one in bins)
        right.plot(
            [(one.low + one.high) / 2 for one in of_model[model]],
            [one.n_samples / total for one in of_model[model]],
            color=colour, linestyle=line, marker="o", markersize=3,
        )  # fmt: skip
        words.append(f"{model}: ECE {with_interval(report.of(model, split)['ECE'])}")
    left.set_xlim(0, 1)
    left.set_ylim(0, 1)
    left.set_xlabel("mean probability of the bin")
    left.set_ylabel("share of likes")
    right.set_xlim(0, 1)
    right.set_ylim(bottom=0)
    right.set_xlabel("probability, in ten bins")
    right.set_ylabel("share of samples")
    legend(figure, columns=3)
    title = f"Reliability on the {SPLIT_NAMES[split]} split"
    yield Drawing("reliability", "calibration", title, f"Line chart. {'; '.join(words)}.", figure)


def _heterogeneity_plot(report: CtrReport) -> Iterator[Drawing]:
    """Distinct genres by the number of behaviours kept, one line per kind of history."""
    if not report.heterogeneity:
        return
    split = report.heterogeneity[0].split
    figure = new_figure(10, 3.4)
    axes = figure.subplots()
    words = []
    for n, history in enumerate(dict.fromkeys(one.history for one in report.heterogeneity)):
        points = [one for one in report.heterogeneity if (one.history, one.split) == (history, split)]
        points.sort(key=lambda one: one.k)
        genres = [one.distinct_genres for one in points]
        axes.plot([one.k for one in points], genres, color=COLOURS[n], marker="o", markersize=4, label=history)
        words += [f"{history}, K = {one.k}: {number(one.distinct_genres, '.2f')}" for one in points]
    axes.set_xlabel("behaviours kept, K")
    axes.set_xticks(sorted({one.k for one in report.heterogeneity}))
    axes.set_ylabel("distinct genres, mean")
    axes.set_ylim(bottom=0)
    axes.legend()
    title = f"Distinct genres among the behaviours kept, {SPLIT_NAMES[split]} split"
    yield Drawing("heterogeneity", "heterogeneity", title, f"Line chart. {'; '.join(words)}.", figure)
