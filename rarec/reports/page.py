"""Writing a report as JSON, as one self-contained HTML page, and its plots as PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from rarec.reports.records import SPLIT_NAMES, Report
from rarec.reports.tables import Card, Table

if TYPE_CHECKING:
    from rarec.reports.plots import Plot


@dataclass(frozen=True)
class ReportPaths:
    """Where `write_page` put its files."""

    json: Path
    html: Path
    plots: dict[str, Path]
    """PNG files by the name of the plot."""


def write_page(
    folder: Path, template: str, report: Report, cards: Sequence[Card], tables: Sequence[Table], plots: "Sequence[Plot]"
) -> ReportPaths:
    """Write `report.json`, `report.html` and `plots/<name>.png` into `folder`, which is created if it does not exist.

    The page is a single file without scripts and external references, for browsers, e-mail and MLflow. `template` is a
    file in the folder `templates`. Each of its sections shows the tables and plots that belong to it.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    png_paths = {}
    for plot in plots:
        png_paths[plot.name] = folder / "plots" / f"{plot.name}.png"
        png_paths[plot.name].write_bytes(plot.png)
    json_path, html_path = folder / "report.json", folder / "report.html"
    json_path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rarec.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["split_name"] = SPLIT_NAMES.__getitem__
    page = environment.get_template(template).render(report=report, cards=cards, tables=tables, plots=plots)
    html_path.write_text(page, encoding="utf-8")
    return ReportPaths(json_path, html_path, png_paths)
