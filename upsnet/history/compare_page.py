"""The page of `upsnet runs compare`: settings, figures and curves of several runs, one over the other."""

from __future__ import annotations

from pathlib import Path

from upsnet.charts import Points, line_chart
from upsnet.figures import points
from upsnet.files import write_text
from upsnet.history.compare import QUALITIES, Comparison
from upsnet.history.curves import Chart, column, loss_terms, present, smoothed
from upsnet.history.page import TEMPLATES
from upsnet.pages import open_template


def write_comparison(path: Path, comparison: Comparison) -> None:
    """One page that holds all that it shows. InputError where it cannot be written."""
    terms = list(dict.fromkeys(term for run in comparison.runs for term in loss_terms(run.rows)))
    losses = {"Training loss": "loss"} | {term: term for term in terms}
    machine = {"Learning rate": "lr", "Gradient norm": "grad_norm", "Images a second": "images_per_second"}
    page = open_template(TEMPLATES / "compare.html", points=points).render(
        comparison=comparison,
        quality=present(_chart(comparison, title, key, 100) for title, key in QUALITIES.items()),
        losses=present(_chart(comparison, title, key, average=True) for title, key in losses.items()),
        machine=present(_chart(comparison, title, key, average=key != "lr") for title, key in machine.items()),
    )
    write_text(path, page)


def _chart(comparison: Comparison, title: str, key: str, factor: float = 1.0, average: bool = False) -> Chart:
    """One line for each run that has the key, in the colour that it has in all charts."""
    lines: dict[str, Points] = {}
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        line = column(run.rows, key, factor)
        lines[name] = smoothed(line) if average else line
    return Chart(title, line_chart(lines, title=title))
