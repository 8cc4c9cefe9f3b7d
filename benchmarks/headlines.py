"""`python -m benchmarks.headlines`: write the tables of results in README.md and docs/ from the recorded figures.

A table stands between `<!-- results NAME -->` and `<!-- end of results -->`. Its figures are copied from
`benchmarks/results`, never typed. With `--check` nothing is written, and the exit code is 1 if a table is out of date.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

# A table's name of a row -> the page's.
RASEREC = {
    "Popularity": "popularity",
    "Item-KNN": "item-KNN",
    "Stage 1, seed 42": "pre-trained (stage 1), seed 42",
    "Stage 1, seed 43": "pre-trained (stage 1), seed 43",
    "Stage 2, seed 42": "fine-tuned (stage 2), seed 42",
    "Stage 2, seed 43": "fine-tuned (stage 2), seed 43",
    "RaSeRec as published": "RaSeRec, paper",
}
RELLA = {
    "Logistic regression on five numbers": ("logistic regression on five numbers", ""),
    "Zero-shot, retrieved behaviours": ("none (zero-shot)", "retrieved"),
    "Tuned on the mixture, retrieved behaviours": ("mixed", "retrieved"),
    "Tuned on the mixture, recent behaviours": ("mixed", "recent"),
}
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


def raserec() -> str:
    """RaSeRec on Amazon Beauty."""
    header = ["Amazon Beauty, test", "HR@10", "NDCG@10", "HR@10 masked", "NDCG@10 masked"]
    rows = {(row["model"], row["protocol"]): row for row in _rows("amazon-beauty.md", "model", "protocol")}
    wanted = [(protocol, figure) for protocol in ("unmasked", "masked") for figure in ("HR@10", "NDCG@10")]
    return _table(
        header,
        (
            [shown, *(rows.get((name, of), {}).get(figure, "–") for of, figure in wanted)]
            for shown, name in RASEREC.items()
        ),
    )


def rella() -> str:
    """ReLLa on MovieLens-100K."""
    asked, figures = ("prompts tuned on", "prompts asked"), ("AUC", "LogLoss", "ACC")
    rows = {(row[asked[0]], row[asked[1]]): row for row in _rows("ml-100k-rella.md", *asked)}
    return _table(
        ["MovieLens-100K, test", *figures],
        ([shown, *(rows[key][figure] for figure in figures)] for shown, key in RELLA.items()),
    )


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


TABLES: dict[str, Callable[[], str]] = {"raserec": raserec, "rella": rella, "replay": replay, "speed": speed}


def filled(text: str) -> str:
    """The text with its marked tables as they are recorded now."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def _record(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    return results


def _rows(page: str, *header: str) -> list[dict[str, str]]:
    """Rows of the first table on a page of results whose header has these columns, without emphasis."""
    columns: list[str] = []
    found = []
    for line in (RESULTS / page).read_text().splitlines():
        cells = [part.replace("*", "").strip() for part in line.strip("|").split("|")] if line.startswith("|") else []
        if columns and not cells:
            break
        if columns and not line.startswith("|---"):
            found.append(dict(zip(columns, cells, strict=True)))
        elif set(header) <= set(cells):
            columns = cells
    if not found:
        raise SystemExit(f"error: {page} has no table with the columns {', '.join(header)}")
    return found


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False) -> None:
    """Bring the tables of README.md and docs/ up to date."""
    texts = {file: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
    stale = {file: new for file, text in texts.items() if (new := filled(text)) != text}
    if check and stale:
        names = ", ".join(str(file.relative_to(ROOT)) for file in stale)
        raise SystemExit(f"error: results are out of date in {names}; run python -m benchmarks.headlines")
    for file, new in stale.items():
        file.write_text(new)


if __name__ == "__main__":
    typer.run(main)
