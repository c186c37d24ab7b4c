"""`upsnet pq`: PQ of prediction files in the official COCO panoptic format.

Exit code 2, and one line on stderr that names the image and the cause, where the input must be refused. Official
quirks that touch the figures are warnings on stderr.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from upsnet.bulk.output import unpack
from upsnet.bulk.plan import PLAN
from upsnet.datasets.split import INDEX
from upsnet.errors import InputError
from upsnet.files import read_json, write_json
from upsnet.metrics.pq_files import evaluate
from upsnet.storage import is_url

SHOWN_WARNINGS = 50


def table(report: Mapping[str, Any]) -> str:
    """The three groups as text, in percent."""
    lines = [f"{'':8}{'PQ':>7}{'SQ':>7}{'RQ':>7}{'N':>6}"]
    for group, mean in report["results"].items():
        figures = "".join(f"{'-' if mean[key] is None else f'{100 * mean[key]:.1f}':>7}" for key in ("pq", "sq", "rq"))
        lines.append(f"{group:8}{figures}{mean['n']:>6}")
    return "\n".join(lines)


def class_table(report: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]) -> str:
    """One line for each category that has any segment, in the order of the table."""
    lines = [f"{'PQ':>6}{'SQ':>7}{'RQ':>7}{'TP':>8}{'FP':>8}{'FN':>8}  category"]
    for category in categories:
        figures = report["per_class"][str(int(category["id"]))]
        if any(figures[count] for count in ("tp", "fp", "fn")):
            fractions = f"{100 * figures['pq']:>6.1f}{100 * figures['sq']:>7.1f}{100 * figures['rq']:>7.1f}"
            numbers = "".join(f"{figures[count]:>8}" for count in ("tp", "fp", "fn"))
            name = " ".join(str(category.get("name", category["id"])).split())
            lines.append(f"{fractions}{numbers}  {name}")
    return "\n".join(lines)


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings[:SHOWN_WARNINGS]:
        print("warning:", " ".join(warning.split()), file=sys.stderr)
    if len(warnings) > SHOWN_WARNINGS:
        print(f"warning: and {len(warnings) - SHOWN_WARNINGS} more; --json has them all", file=sys.stderr)


def main(
    gt_json: Annotated[Path, typer.Option(help="Ground truth, COCO panoptic format.")],
    pred_json: Annotated[
        str,
        typer.Option(
            help="Predictions, the same format; or the folder, or the URL, that `upsnet predict --photos-from` wrote."
        ),
    ],
    gt_folder: Annotated[
        Path | None, typer.Option(help="Its PNGs (default: panoptic_NAME beside NAME.json, else NAME).")
    ] = None,
    pred_folder: Annotated[
        Path | None, typer.Option(help="Their PNGs (default: the JSON's path without .json).")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results, and each class's, to this file.")] = None,
    workers: Annotated[int, typer.Option(help="Cores to use; the figures do not depend on it.")] = 1,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print each category's figures too.")] = False,
    check_all: Annotated[
        bool,
        typer.Option(
            "--check-all", help="Compare every ground-truth PNG with its JSON, not 8 or one in a hundred of them."
        ),
    ] = False,
) -> None:
    """PQ, SQ and RQ of COCO panoptic predictions, as panopticapi has them. Exit status 2: the input is refused."""
    if gt_json.name.endswith(INDEX):
        raise InputError(f"{gt_json}: PQ of files takes a truth in folders; `upsnet eval` takes one in shards")
    predictions = Path(pred_json)
    with ExitStack() as stack:
        if is_url(pred_json) or (predictions / PLAN).is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upsnet-")))
            predictions, pred_folder = unpack(pred_json, folder), folder / "predictions"
        report = evaluate(gt_json, predictions, gt_folder, pred_folder, workers, check_all)
    if json:
        write_json(json, report)
    _print_warnings(report["warnings"])
    print(table(report))
    if report["truth_checked"] < report["images"]:
        checked = f"{report['truth_checked']} of {report['images']} ground-truth PNGs"
        print(f"{checked} were compared with their JSON; --check-all compares all")
    if per_class:
        print(f"\n{class_table(report, read_json(gt_json)['categories'])}")
