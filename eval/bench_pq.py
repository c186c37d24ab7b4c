"""How fast PQ is computed, against panopticapi's algorithm and against hotcoco in the same run, one core; and on more.

    upsnet bench-pq

Maps of 640 x 480 pixels with about 20 segments a side: `smooth` regions, and `ragged` ones whose borders are noise.
hotcoco's own call checks less than `upsnet pq`, which is timed with all its checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from PIL import Image
from rich.table import Table
from tqdm import tqdm

from upsnet import hotcoco_package
from upsnet.datasets.coco_format import id2rgb, read_panoptic_png
from upsnet.files import write_json
from upsnet.machine import machine_facts
from upsnet.metrics.pq import PQStat
from upsnet.metrics.pq_files import evaluate
from upsnet.report import Report
from upsnet.tables import make_table, print_tables

HEIGHT, WIDTH = 480, 640
SEGMENTS, CATEGORIES = 20, 8
GOALS = {"arrays": 2.5, "PNG files": 1.3}  # times the baseline's rate
HOTCOCO_GOAL = 0.9  # of its rate
COMPRESSIONS = {"default": -1, "fast": 1}  # Pillow's compress_level
OFFSET = 256**3

Infos = list[dict[str, Any]]  # segments_info as a COCO panoptic JSON has it
Figures = tuple[int, int, int, float]  # tp, fp, fn, sum of IoUs


@dataclass(frozen=True)
class Contest:
    """Milliseconds an image, best of the rounds, mean over the images."""

    maps: str
    source: str
    ms: float
    baseline_ms: float
    ratio: float


@dataclass(frozen=True)
class Rivalry:
    """Milliseconds of CPU an image, best of the rounds."""

    maps: str
    compression: str
    images: int
    ms: float
    hotcoco_ms: float
    ratio: float


@dataclass(frozen=True)
class OnCores:
    """`upsnet pq` on so many cores; seconds include the start of the command."""

    workers: int
    images: int
    seconds: float
    images_per_s: float
    speedup: float


class PqBench(Report):
    """The file that --out names."""

    machine: dict[str, str | int]
    ratios: list[Contest]
    hotcoco: list[Rivalry]
    workers: list[OnCores]


class Pair(NamedTuple):
    """Truth and prediction of one image."""

    gt: np.ndarray  # int32 H x W
    gt_infos: Infos
    pred: np.ndarray
    pred_infos: Infos


def make_pair(seed: int, ragged: float) -> Pair:
    """Regions around random points, which the prediction has moved a little. ragged: noise on each pixel's place."""
    rng = np.random.default_rng(seed)
    points = rng.random((SEGMENTS, 2)) * (HEIGHT, WIDTH)
    place = np.moveaxis(np.mgrid[:HEIGHT, :WIDTH], 0, -1).astype(np.float32)
    maps: list[np.ndarray] = []
    infos: list[Infos] = []
    for side, moved in enumerate((points, points + rng.normal(0, 10, points.shape))):
        seen = place + rng.normal(0, ragged, place.shape).astype(np.float32) if ragged else place
        nearest = np.stack([((seen - point.astype(np.float32)) ** 2).sum(-1) for point in moved]).argmin(0)
        # Official truths have ids of 24 bits, predictions usually count from 1.
        names = np.arange(1, SEGMENTS + 1) if side else rng.choice(OFFSET - 1, SEGMENTS, replace=False) + 1
        areas = np.bincount(nearest.ravel(), minlength=SEGMENTS)
        maps.append(names.astype(np.int32)[nearest])
        infos.append(
            [
                {"id": int(names[i]), "category_id": i % CATEGORIES, "iscrowd": 0, "area": int(areas[i])}
                for i in range(SEGMENTS)
                if areas[i]
            ]
        )
    return Pair(maps[0], infos[0], maps[1], infos[1])


def baseline(gt: np.ndarray, gt_infos: Infos, pred: np.ndarray, pred_infos: Infos) -> Figures:
    """panopticapi's steps on uint32 maps: unique over all pixels twice, then loops."""
    truth = {info["id"]: info for info in gt_infos}
    found = {info["id"]: dict(info) for info in pred_infos}
    for label, area in zip(*np.unique(pred, return_counts=True), strict=True):
        if label:
            found[label]["area"] = area
    pairs = gt.astype(np.uint64) * OFFSET + pred.astype(np.uint64)
    overlap = {
        (int(label) // OFFSET, int(label) % OFFSET): pixels
        for label, pixels in zip(*np.unique(pairs, return_counts=True), strict=True)
    }
    total, matched_gt, matched_pred = 0.0, set(), set()
    for (a, b), pixels in overlap.items():
        if a not in truth or b not in found or truth[a]["iscrowd"]:
            continue
        if truth[a]["category_id"] != found[b]["category_id"]:
            continue
        iou = pixels / (found[b]["area"] + truth[a]["area"] - pixels - overlap.get((0, b), 0))
        if iou > 0.5:
            total += iou
            matched_gt.add(a)
            matched_pred.add(b)
    missed = sum(id not in matched_gt and not info["iscrowd"] for id, info in truth.items())
    wrong = sum(id not in matched_pred and overlap.get((0, id), 0) / info["area"] <= 0.5 for id, info in found.items())
    return len(matched_gt), wrong, missed, total


def baseline_png(path: Path) -> np.ndarray:
    """Pillow, then uint32 arithmetic on the channels."""
    with Image.open(path) as image:
        rgb = np.array(image, dtype=np.uint32)
    return rgb[:, :, 0] + 256 * rgb[:, :, 1] + 256 * 256 * rgb[:, :, 2]


def ours(pair: Pair) -> Figures:
    stat = PQStat()
    stat.accumulate(*pair)
    counts = stat.counts.values()
    return (
        sum(c.tp for c in counts), sum(c.fp for c in counts), sum(c.fn for c in counts), sum(c.iou for c in counts)
    )  # fmt: skip


def write_pairs(folder: Path, pairs: list[Pair], level: int) -> list[tuple[Path, Path]]:
    """folder/{gt,pred}/<index>.png, with Pillow's compress_level `level`."""
    paths = []
    for index, pair in enumerate(pairs):
        files = folder / "gt" / f"{index}.png", folder / "pred" / f"{index}.png"
        for file, ids in zip(files, (pair.gt, pair.pred), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(id2rgb(ids)).save(file, compress_level=level)
        paths.append(files)
    return paths


def write_jsons(folder: Path, pairs: list[Pair], images: int) -> tuple[Path, Path]:
    """folder/{gt,pred}.json of `images` images, which share the pairs' PNGs."""
    for side, infos in (("gt", "gt_infos"), ("pred", "pred_infos")):
        annotations = [
            {
                "image_id": index,
                "file_name": f"{index % len(pairs)}.png",
                "segments_info": getattr(pairs[index % len(pairs)], infos),
            }
            for index in range(images)
        ]
        categories = [{"id": id, "name": str(id), "isthing": id % 2} for id in range(CATEGORIES)]
        write_json(folder / f"{side}.json", {"annotations": annotations, "categories": categories})
    return folder / "gt.json", folder / "pred.json"


def compare(pairs: list[Pair], paths: list[tuple[Path, Path]], rounds: int, name: str) -> list[Contest]:
    """Ours and the baseline taking turns. AssertionError where their counts differ."""
    wide = [pair._replace(gt=pair.gt.astype(np.uint32), pred=pair.pred.astype(np.uint32)) for pair in pairs]

    def read(index: int, reader: Callable[[Path], np.ndarray]) -> Pair:
        gt, pred = (reader(path) for path in paths[index])
        return pairs[index]._replace(gt=gt, pred=pred)

    contests: dict[str, tuple[Callable[[int], Figures], Callable[[int], Figures]]] = {
        "arrays": (lambda i: ours(pairs[i]), lambda i: baseline(*wide[i])),
        "PNG files": (lambda i: ours(read(i, read_panoptic_png)), lambda i: baseline(*read(i, baseline_png))),
    }
    rows = []
    for source, contestants in contests.items():
        best = np.full((2, len(pairs)), np.inf)
        for _ in tqdm(range(rounds), desc=f"{name}, {source}", disable=None):
            for index in range(len(pairs)):
                answers = []
                for which, contestant in enumerate(contestants):
                    start = time.perf_counter()
                    answers.append(contestant(index))
                    best[which, index] = min(best[which, index], 1e3 * (time.perf_counter() - start))
                assert answers[0][:3] == answers[1][:3] and abs(answers[0][3] - answers[1][3]) < 1e-9, answers
        mine, baselines = best.mean(1).tolist()
        rows.append(Contest(name, source, mine, baselines, baselines / mine))
    return rows


def against_hotcoco(gt: Path, pred: Path, images: int, rounds: int) -> tuple[float, float]:
    """Ours and hotcoco taking turns -> `ms` and `hotcoco_ms`. AssertionError where their figures differ."""
    hotcoco = hotcoco_package.load()

    def theirs() -> Any:  # hotcoco has no types
        evaluation = hotcoco.panoptic.PanopticEval(gt, pred)
        evaluation.evaluate()
        return evaluation.results()

    best = np.full(2, np.inf)
    for _ in range(rounds):
        answers = []
        for which, contestant in enumerate((lambda: evaluate(gt, pred)["results"], theirs)):
            start = time.process_time()
            answers.append(contestant())
            best[which] = min(best[which], 1e3 * (time.process_time() - start) / images)
        assert abs(answers[0]["All"]["pq"] - answers[1]["All"]["pq"]) < 1e-9, answers
    return float(best[0]), float(best[1])


def scaling(gt: Path, pred: Path, images: int, workers: Sequence[int]) -> list[OnCores]:
    environment = {key: value for key, value in os.environ.items() if key != "RAYON_NUM_THREADS"}
    command = [sys.executable, "-m", "upsnet", "pq", "--gt-json", str(gt), "--pred-json", str(pred), "--workers"]
    rows: list[OnCores] = []
    for count in workers:
        start = time.perf_counter()
        subprocess.run([*command, str(count)], check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        rows.append(OnCores(count, images, seconds, images / seconds, rows[0].seconds / seconds if rows else 1.0))
    return rows


def tables(report: PqBench) -> list[Table]:
    title = f"PQ, ms an image of {WIDTH} x {HEIGHT} on one core, taking turns"
    ratios = make_table(title, "maps", "from", "ours", "baseline", "ratio", "goal", left=2)
    for contest in report.ratios:
        figures = [f"{value:.2f}" for value in (contest.ms, contest.baseline_ms, contest.ratio)]
        ratios.add_row(contest.maps, contest.source, *figures, str(GOALS[contest.source]))
    title = f"PQ of {report.hotcoco[0].images} images from files, ms of CPU an image, taking turns"
    rivals = make_table(title, "maps", "PNGs", "ours", "hotcoco", "of its rate", "goal", left=2)
    for rivalry in report.hotcoco:
        figures = [f"{value:.2f}" for value in (rivalry.ms, rivalry.hotcoco_ms, rivalry.ratio)]
        rivals.add_row(rivalry.maps, rivalry.compression, *figures, str(HOTCOCO_GOAL))
    title = f"upsnet pq, {report.workers[0].images} images"
    cores = make_table(title, "workers", "seconds", "images/s", "speedup")
    for row in report.workers:
        cores.add_row(str(row.workers), f"{row.seconds:.2f}", f"{row.images_per_s:.0f}", f"{row.speedup:.2f}")
    return [ratios, rivals, cores]


def main(
    images: Annotated[int, typer.Option(min=1, help="Different images of each kind.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each image is scored.")] = 10,
    scaling_images: Annotated[int, typer.Option(min=1, help="Images of an evaluation of whole files.")] = 1500,
    processes: Annotated[list[int], typer.Option(min=1, help="Numbers of workers.")] = [1, 2],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Time PQ against panopticapi's algorithm, from arrays and from PNG files; against hotcoco; on several cores."""
    ratios: list[Contest] = []
    rivals: list[Rivalry] = []
    os.environ["RAYON_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="pq-") as name:
        for kind, ragged in (("smooth", 0.0), ("ragged", 8.0)):
            pairs = [make_pair(seed, ragged) for seed in range(images)]
            for compression, level in COMPRESSIONS.items():
                folder = Path(name) / f"{kind}-{compression}"
                paths = write_pairs(folder, pairs, level)
                if compression == "default":
                    ratios += compare(pairs, paths, rounds, kind)
                jsons = write_jsons(folder, pairs, scaling_images)
                ms, theirs = against_hotcoco(*jsons, scaling_images, max(rounds // 2, 1))
                rivals.append(Rivalry(kind, compression, scaling_images, ms, theirs, theirs / ms))
        on_cores = scaling(*jsons, scaling_images, processes)
    report = PqBench(machine=machine_facts(), ratios=ratios, hotcoco=rivals, workers=on_cores)
    print_tables(*tables(report))
    if out is not None:
        report.save(out)
        print(f"wrote {out}")
