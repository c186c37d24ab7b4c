"""When all blocks are there: OUT/report.json and OUT/failed.jsonl, from the blocks alone.

Whoever finds that all are there writes them, and everybody writes the same.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from pydantic import ConfigDict

from upsnet import storage
from upsnet.bulk import parquet, tar
from upsnet.bulk.photo_list import place_of
from upsnet.bulk.pipeline import in_order
from upsnet.bulk.plan import Plan
from upsnet.bulk.row import Summary
from upsnet.datasets.progress import progress_bar
from upsnet.errors import InputError
from upsnet.report import Report

REPORT, FAILED = "report.json", "failed.jsonl"
SUMMARIES = {"tar": tar.read_summary, "parquet": parquet.read_summary}
AT_ONCE = 16  # blocks that are looked into: a bucket takes its time for each
SHOWN_FROM = 200  # blocks


class BulkReport(Report):
    """What became of a list of photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    photos: int
    predicted: int
    left_out: int  # failed.jsonl has them, with the reasons
    blocks: int
    format: str
    model: str
    model_digest: str
    photo_list_sha256: str


def finish(plan: Plan, out: str, base: str) -> BulkReport:
    """Writes both files, the report last, once all blocks are there. base: of the list (`base_of`).

    failed.jsonl is a list of photos, too: what was left out can be tried again. Raises InputError for a block that is
    not what the plan says.
    """
    left_out = 0
    with (
        storage.writing_file(storage.join(out, FAILED)) as path,
        open(path, "w", encoding="utf-8") as failed,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        numbers = range(plan.blocks)
        summaries = in_order((pool.submit(summary_of, plan, out, number) for number in numbers), AT_ONCE)
        bar = progress_bar(
            summaries, total=len(numbers), title="counting", unit="block", shown=len(numbers) >= SHOWN_FROM
        )
        for summary in bar:
            left_out += len(summary.left_out)
            for each in summary.left_out:
                failed.write(json.dumps(each._asdict() | {"photo": place_of(each.photo, base)}) + "\n")
    report = BulkReport(
        photos=plan.photos,
        predicted=plan.photos - left_out,
        left_out=left_out,
        blocks=plan.blocks,
        format=plan.format,
        model=plan.model,
        model_digest=plan.model_digest,
        photo_list_sha256=plan.photo_list_sha256,
    )
    content = json.dumps(report.model_dump(mode="json"), indent=1) + "\n"
    storage.write(storage.join(out, REPORT), content.encode())
    return report


def summary_of(plan: Plan, out: str, number: int) -> Summary:
    """InputError where the file is not that block of this plan."""
    place = storage.join(out, plan.file_name(number))
    summary = SUMMARIES[plan.format](place)
    wanted = number, plan.photos_in(number), plan.model_digest
    if (summary.block, summary.photos, summary.model_digest) != wanted:
        raise InputError(f"{place}: is not block {number} of this run; delete it and start the command again")
    return summary
