"""`python -m benchmarks.replay`: what each step of the cascade gains as time goes by, and what it costs.

A data set with a clock is lived through again, week after week: what came before the first week trains the first
champion; then every week's events are foreseen, and after it the strategies do what they do.
"""

import os
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.measure import Figures
    from rarec.champions.raserec import ServedRecommender, Translation
    from rarec.champions.window import Window
    from rarec.raserec.settings import FinetuneSettings, PretrainSettings

WEEK_S = 7 * 86_400
STRATEGIES = ("no update", "refresh", "refresh and fine-tune", "full retraining")
RESULTS = Path(__file__).parent / "results"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "replay.png"
ABOUT = {
    "replay": "NDCG@10 and HR@10: users count alike, each with the mean over their events. Items that a user already "
    "had are no candidates. Every event is scored just before it happened, with what the user had done until then. "
    "What a strategy remembers of others ends with the week before. *missed*: the item is unknown, or the user has no "
    "known history. Differences to *no update* are paired by user, with 95 % intervals. Seconds are those of updates, "
    "after the first champion's training, which all share.",
    "weeks": "NDCG@10 of every week.",
}


@dataclass
class Course:
    """How one strategy fares."""

    served: "ServedRecommender"
    seconds: float = 0.0
    ndcg: list[float] = field(default_factory=list)
    ranks: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Trainer:
    """Trains as the assets do, in this process."""

    pretrain: "PretrainSettings"
    finetune: "FinetuneSettings"

    def both_stages(self, past: "pd.DataFrame") -> "ServedRecommender":
        """A new model of all that happened."""
        from benchmarks.measure import silent
        from rarec.champions.raserec import ServedRecommender
        from rarec.raserec.encoders import load_encoder
        from rarec.raserec.pretrain import pretrain
        from rarec.raserec.recommender import Recommender
        from rarec.retrieval.memory import MemoryBank

        item_ids = past["item_id"].drop_duplicates().sort_values(ignore_index=True)
        translation = _translate(past, item_ids)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            pretrain(translation.sequences, self.pretrain, folder, folder / "checkpoint", silent)
            encoder = load_encoder(folder, len(item_ids))
        prefixes = translation.sequences.prefixes("train")
        vectors = encoder.encode(translation.sequences, prefixes).numpy()
        bank = MemoryBank.build(translation.sequences, prefixes, vectors, "replay", _memory())
        module = self._module(translation, encoder, bank)
        recommender = Recommender(encoder, bank, module)
        served = ServedRecommender(recommender, item_ids, translation.user_ids, translation.sequences)
        return remember(served, translation)

    def stage_two(self, served: "ServedRecommender", past: "pd.DataFrame") -> "ServedRecommender":
        """Memory refreshed, and the module trained anew on it."""
        from dataclasses import replace

        import numpy as np

        translation = served.translate(past, clock=True)
        fresh = remember(served, translation)
        bank = fresh.recommender.bank.copy()
        order = np.argsort(bank.prefixes)
        bank.keep(order[np.isin(bank.prefixes[order], translation.sequences.prefixes("train"))])
        module = self._module(translation, fresh.recommender.encoder, bank)
        return replace(fresh, recommender=replace(fresh.recommender, module=module))

    def _module(self, translation: "Translation", encoder: Any, bank: Any) -> Any:
        from benchmarks.measure import silent
        from rarec.raserec.finetune import finetune
        from rarec.raserec.retrieval_module import load_module

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            finetune(translation.sequences, encoder, bank, self.finetune, folder, folder / "checkpoint", silent)
            return load_module(folder, bank.encoder)


def remember(served: "ServedRecommender", translation: "Translation") -> "ServedRecommender":
    """The same model with its memory refreshed."""
    from dataclasses import replace

    recommender = replace(served.recommender, bank=served.refreshed(translation), _memories=None)
    return replace(served, recommender=recommender, user_ids=translation.user_ids, sequences=translation.sequences)


def _translate(past: "pd.DataFrame", item_ids: "pd.Series") -> "Translation":
    """A model's own interactions: there is no model yet that could do it."""
    from rarec.champions.raserec import ServedRecommender

    blank = ServedRecommender.__new__(ServedRecommender)
    blank.item_ids = item_ids
    return blank.translate(past, clock=True)


def _memory() -> Any:
    from rarec.retrieval.settings import MemorySettings

    return MemorySettings()


def replay(
    table: "pd.DataFrame", trainer: Trainer, first: int, weeks: int, retrain_weeks: int, say: Callable[[str], None]
) -> tuple[dict[str, Course], "list[Window]", list[int]]:
    """Every strategy's course, the weeks' events, and when each week began.

    Args:
        table: clean interactions.
        first: the time (seconds) at which the first week begins.
        weeks: how many are lived through.
        retrain_weeks: weeks between two full retrainings.
    """
    from rarec.champions.window import CHOICE, newest_window

    times = table["timestamp"].to_numpy()
    champion = trainer.both_stages(table[times < first])
    courses = {name: Course(champion) for name in STRATEGIES}
    windows, begins = [], []
    for week in range(weeks):
        begin = first + week * WEEK_S
        past = table[times < begin]
        if week:
            for name, course in courses.items():
                started = time.perf_counter()
                course.served = _update(name, course.served, past, trainer, week % retrain_weeks == 0)
                course.seconds += time.perf_counter() - started
        known = table[times < begin + WEEK_S]
        window = newest_window(known, begin)
        if len(window) == 0:
            continue
        windows.append(window)
        begins.append(begin)
        for name, course in courses.items():
            translation = course.served.translate(known, clock=True)
            ranks = course.served.ranks(translation, window.events, course.served.carried(translation))
            course.ranks.append(ranks)
            course.ndcg.append(window.figures(ranks)[CHOICE])
            say(
                f"week {week + 1}/{weeks}  {name}: {CHOICE} {course.ndcg[-1]:.4f}  missed "
                f"{window.figures(ranks)['missed']:.1%} of {len(window)} events  {course.seconds:.0f} s so far"
            )
    return courses, windows, begins


def _update(
    name: str, served: "ServedRecommender", past: "pd.DataFrame", trainer: Trainer, retrain: bool
) -> "ServedRecommender":
    if name == "no update":
        return served
    if name == "refresh and fine-tune":
        return trainer.stage_two(served, past)
    if name == "full retraining" and retrain:
        return trainer.both_stages(past)
    return remember(served, served.translate(past, clock=True))


def summarise(courses: dict[str, Course], windows: "list[Window]") -> "Figures":
    """Figures of all weeks together, by strategy."""
    import numpy as np

    from rarec.champions.window import CHOICE_ERROR, Window

    whole = Window(
        np.concatenate([window.events for window in windows]), np.concatenate([window.users for window in windows])
    )
    ranks = {name: np.concatenate(course.ranks) for name, course in courses.items()}
    figures: Figures = {}
    for name, course in courses.items():
        own = whole.figures(ranks[name])
        compared = whole.compare(ranks["no update"], ranks[name])
        interval = f"{compared.ci_low:+.4f} to {compared.ci_high:+.4f}"
        figures[name] = {
            "events": len(whole),
            "users": compared.n_users,
            **{figure: f"{value:.4f}" for figure, value in own.items() if figure != CHOICE_ERROR},
            "NDCG@10 minus no update": f"{compared.difference:+.4f} ({interval})",
            "updates, s": course.seconds,
        }
    return figures


def draw(figures: "Figures", by_week: "Figures", title: str, png: Path) -> None:
    """Quality week by week, and quality of all weeks against seconds spent."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from rarec.reports.plots import COLOURS, legend, style

    with style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for colour, (name, weeks) in zip(COLOURS, by_week.items(), strict=False):
            numbers = [int(week.removeprefix("week ")) for week in weeks]
            left.plot(
                numbers, [float(value) for value in weeks.values()], color=colour, marker="o", markersize=3, label=name
            )
            seconds, quality = float(figures[name]["updates, s"]), float(figures[name]["NDCG@10"])
            right.plot(max(seconds, 0.1), quality, color=colour, marker="D", markersize=8)
            right.annotate(name, (max(seconds, 0.1), quality), (0, 9), textcoords="offset points", ha="center")
        left.set(xlabel="week", ylabel="NDCG@10 of the week's events", title=title)
        right.set(xlabel="seconds spent on updates (log)", ylabel="NDCG@10 of all weeks", title="What it costs")
        right.set_xscale("log")
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        right.margins(0.25, 0.25)
        legend(figure)
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=110)


def main(
    data: Annotated[Path, typer.Option(help="Folder of data sets.")] = Path("../shared/datasets"),
    dataset: Annotated[str, typer.Option(help="A data set with a clock.")] = "ml-100k",
    begin: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the events before the first week.")] = 0.5,
    weeks: Annotated[int, typer.Option(min=1, help="Weeks to live through, at most.")] = 16,
    retrain_weeks: Annotated[int, typer.Option(min=1, help="Weeks between full retrainings.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs of stage 1; stage 2 gets half.")] = 20,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 means one a core.")] = 0,
    record: Annotated[bool, typer.Option(help="Write benchmarks/results/replay.* and docs/images/replay.png.")] = False,
) -> None:
    """Live through a data set week by week with every strategy."""
    threads = threads or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before NumPy, PyTorch and Faiss are imported
    import numpy as np

    from benchmarks import report
    from benchmarks.measure import become_worker, machine
    from benchmarks.workloads import read_tables
    from rarec.data.spec import builtin_specs
    from rarec.raserec.settings import FinetuneSettings, PretrainSettings

    become_worker(threads)
    spec = builtin_specs()[dataset]
    table = read_tables(spec, data).interactions
    times = np.sort(table["timestamp"].to_numpy())
    first = int(times[int(begin * len(times))])
    weeks = min(weeks, 1 + (int(times[-1]) - first) // WEEK_S)
    few = {"epochs": epochs, "patience": 3}
    trainer = Trainer(
        PretrainSettings.model_validate({**spec.overrides.get("raserec_pretrained", {}), **few}),
        FinetuneSettings.model_validate(
            {**spec.overrides.get("raserec_finetuned", {}), "epochs": max(1, epochs // 2), "patience": 2}
        ),
    )
    courses, windows, begins = replay(table, trainer, first, weeks, retrain_weeks, lambda line: print(line, flush=True))
    figures = summarise(courses, windows)
    by_week: Figures = {
        name: {
            f"week {int((start - first) // WEEK_S) + 1}": f"{value:.4f}"
            for start, value in zip(begins, course.ndcg, strict=True)
        }
        for name, course in courses.items()
    }
    print(report.table(figures))
    if record:
        options = {"data": os.path.relpath(data), "dataset": dataset, "begin": begin, "weeks": weeks}
        options |= {"retrain-weeks": retrain_weeks, "epochs": epochs, "threads": threads}
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command = shlex.join(["python", "-m", "benchmarks.replay", *flags, "--record"])
        about = (machine(threads), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), options)
        report.write(RESULTS / "replay", {"replay": figures, "weeks": by_week}, command, *about, about=ABOUT)
        draw(figures, by_week, spec.title, PLOT)


if __name__ == "__main__":
    typer.run(main)
