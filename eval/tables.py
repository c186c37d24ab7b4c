"""The figures of an evaluation, as pq.json holds them, in tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from upsnet.categories import Categories
from upsnet.figures import points
from upsnet.metrics.average_precision import FIGURES
from upsnet.tables import make_table


def summary_tables(report: Mapping[str, Any], title: str) -> list[Table]:
    """PQ, SQ and RQ of all, things and stuff; AP of boxes and masks; mIoU. What the report holds of them."""
    tables = []
    if "results" in report:
        tables.append(make_table(title, "", "PQ", "SQ", "RQ", "classes"))
        for group, figures in report["results"].items():
            tables[-1].add_row(group, *(points(figures[key]) for key in ("pq", "sq", "rq")), str(figures["n"]))
    if "ap" in report:
        tables.append(make_table("" if tables else title, "", *FIGURES))
        for kind, figures in report["ap"].items():
            tables[-1].add_row(kind, *(points(figures[key]) for key in FIGURES))
    if "miou" in report:
        tables.append(make_table("" if tables else title, "", "mIoU", "classes"))
        tables[-1].add_row("semantic", points(report["miou"]["miou"]), str(report["miou"]["n"]))
    return tables


def class_table(report: Mapping[str, Any], categories: Categories) -> Table:
    """One row a category, stuff first."""
    table = make_table("", "category", "PQ", "SQ", "RQ", "TP", "FP", "FN", "IoU", "box AP", "mask AP")
    for category in categories:
        key = str(category.id)
        pq = report.get("per_class", {}).get(key)
        present = pq is not None and any(pq[count] for count in ("tp", "fp", "fn"))
        cells = [points(pq[name]) for name in ("pq", "sq", "rq")] if present else ["–"] * 3
        cells += [str(pq[name]) for name in ("tp", "fp", "fn")] if present else ["–"] * 3
        cells.append(points(report.get("miou", {}).get("per_class", {}).get(key)))
        cells += [points(report.get("ap", {}).get(kind, {}).get("per_class", {}).get(key)) for kind in ("box", "mask")]
        table.add_row(escape(category.name), *cells)
    return table
