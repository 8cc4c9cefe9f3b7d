"""`python -m benchmarks.readme`: write the headline tables of README.md from the recorded results.

A table stands between `<!-- results NAME -->` and `<!-- end of results -->`. Its figures are copied from a page in
`benchmarks/results`, never typed. With `--check` nothing is written, and the exit code is 1 if README.md is out of date.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

README = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

# README's name of a row -> the page's.
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


def headlines() -> dict[str, str]:
    """The tables by name, as Markdown."""
    beauty = {(row["model"], row["protocol"]): row for row in _rows("amazon-beauty.md", "model", "protocol")}
    ranking = (
        [
            shown,
            *(
                beauty.get((name, protocol), {}).get(figure, "–")
                for protocol in ("unmasked", "masked")
                for figure in ("HR@10", "NDCG@10")
            ),
        ]
        for shown, name in RASEREC.items()
    )
    asked = ("prompts tuned on", "prompts asked")
    ml_100k = {(row[asked[0]], row[asked[1]]): row for row in _rows("ml-100k-rella.md", *asked)}
    figures = ("AUC", "LogLoss", "ACC")
    clicks = ([shown, *(ml_100k[key][figure] for figure in figures)] for shown, key in RELLA.items())
    return {
        "raserec": _table(["Amazon Beauty, test", "HR@10", "NDCG@10", "HR@10 masked", "NDCG@10 masked"], ranking),
        "rella": _table(["MovieLens-100K, test", *figures], clicks),
    }


def filled(text: str) -> str:
    """The text with its marked tables as they are recorded now."""
    tables = headlines()
    return MARKED.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", text)


def _rows(page: str, *header: str) -> list[dict[str, str]]:
    """Rows of the first table on a page of results whose header has these columns, without emphasis."""
    columns: list[str] = []
    found = []
    for line in (RESULTS / page).read_text().splitlines():
        cells = [cell.replace("*", "").strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
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
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if out of date.")] = False) -> None:
    """Bring the tables of README.md up to date."""
    before = README.read_text()
    after = filled(before)
    if check and after != before:
        raise SystemExit("error: the results in README.md are out of date; run python -m benchmarks.readme")
    if after != before:
        README.write_text(after)


if __name__ == "__main__":
    typer.run(main)
