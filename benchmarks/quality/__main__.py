"""`python -m benchmarks.quality DATASET TRACK`: run a track of a data set and keep the figures of its report.

A record, `benchmarks/results/quality/<data set>-<track>.json`, holds one or several runs by name (such as the seed).
`python -m benchmarks.quality.headlines` writes the tables of the pages of results from these records.
"""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

RECORDS = Path(__file__).parents[1] / "results" / "quality"
REPORTS = {
    "raserec": "ranking_metrics",
    "rella": "ctr_metrics",
    "peers": "peer_metrics",
    "peers_rella": "peer_ctr_metrics",
}
KEPT = {
    "raserec": ("dataset", "data_version", "n_users", "n_items", "summary", "scores", "comparisons", "causes",
                "published", "efforts"),
    "rella": ("dataset", "data_version", "summary", "chosen", "yardstick", "read", "sizes", "scores", "comparisons",
              "causes", "similarity", "seed_summaries", "efforts"),
}  # fmt: skip
"""What of a report is kept; groups, curves and prompts are not."""


def command_of(dataset: str, track: str, config: str, data: str) -> str:
    """What a reader types to get the same figures."""
    given = f" CONFIG='{config}'" if config != "{}" else ""
    what = {"peers": "make peers", "peers_rella": "make peers TRACK=rella"}.get(track, f"make run TRACK={track}")
    return f"{what} DATASET={dataset} RAREC_DATA={data}{given}"


def kept(track: str, report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that is kept."""
    own = {name: report[name] for name in KEPT["rella" if "ctr" in REPORTS[track] else "raserec"]}
    own["comparisons"] = [one for one in own["comparisons"] if not one.get("group")]
    return _rounded(own)


def _rounded(value: Any) -> Any:
    """Six decimals are enough for every table."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def run(dataset: str, track: str, config: str, data: str) -> tuple[int, list[str]]:
    """Exit code and output of `make run`, which is shown as it comes."""
    arguments = ["--dataset", dataset, "--track", track, "--config", config]
    environment = {**os.environ, "RAREC_DATA": data}
    printed = []
    command = [sys.executable, "-u", "-m", "pipelines.run", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed.append(line)
    return process.returncode, printed


def main(
    dataset: Annotated[str, typer.Argument(help="Data set, such as amazon-beauty.")],
    track: Annotated[str, typer.Argument(help="raserec, rella, peers or peers_rella.")],
    name: Annotated[str, typer.Option(help="Name of the run in the record.")] = "seed 42",
    config: Annotated[str, typer.Option(help="Run configuration, as for `make run`.")] = "{}",
    data: Annotated[str, typer.Option(envvar="RAREC_DATA", help="Folder of data sets.")] = "../shared/datasets",
) -> None:
    """Run a track, and keep its figures under ``name`` in the record of this data set and track."""
    from benchmarks.measure import machine
    from resources.settings import Installation

    if track not in REPORTS:
        raise SystemExit(f"error: TRACK must be one of {', '.join(REPORTS)}, not {track!r}")
    started = time.perf_counter()
    code, printed = run(dataset, track, config, data)
    reports = [line for line in printed if line.startswith("report: ") and f"/{REPORTS[track]}/" in line]
    if code or not reports:
        raise SystemExit(code or f"error: {track} has printed no report of {REPORTS[track]}")
    report = Path(reports[0].removeprefix("report: ").strip())
    file = RECORDS / f"{dataset}-{track}.json"
    runs = json.loads(file.read_text())["runs"] if file.is_file() else {}
    runs[name] = {
        "command": command_of(dataset, track, config, data),
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(Installation.from_environment().threads or os.cpu_count() or 1),
        "seconds": round(time.perf_counter() - started),
        "report": kept(track, json.loads(report.with_name("report.json").read_text())),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"runs": dict(sorted(runs.items()))}, indent=1, ensure_ascii=False) + "\n")
    print(f"recorded: {file.name}, {name}; now run python -m benchmarks.quality.headlines")


if __name__ == "__main__":
    typer.run(main)
