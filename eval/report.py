"""report.html: one self-contained page that shows what a parity run found, with pictures."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from eval.charts import Points, line_chart, smooth
from upsnet.categories import Categories
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.files import write_text
from upsnet.result import PanopticResult
from upsnet.runtimes.options import RUNTIMES

PICTURE_SIDE = 640


class Shot(NamedTuple):
    """What one runtime made of an example; `identical` bool H x W against the reference (None: it is the reference)."""

    runtime: str
    batch: int
    result: PanopticResult
    pq: float | None
    identical: np.ndarray | None


class Example(NamedTuple):
    """One image of the report's grid. kind: "worst" or "typical"."""

    file_name: str
    kind: str
    photo: np.ndarray
    truth: PanopticResult
    shots: list[Shot]


def write_report(
    path: Path, parity: dict[str, Any], examples: list[Example], categories: Categories, run: Path | None = None
) -> None:
    """Renders parity (the content of parity.json) and the examples; training curve and configuration from `run`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(points=_points, signed=_signed, share=share, title=title)
    page = environment.get_template("report.html").render(
        parity=parity,
        reference=next(column for column in parity["columns"] if column["reference"]),
        largest_difference=max((_largest(column) for column in parity["columns"]), default=0.0),
        least_identical=min(column["identical"] for column in parity["columns"]),
        examples=[_pictures(example, categories) for example in examples],
        charts=training_charts(run / "metrics.jsonl") if run else [],
        config=_text(run / "config.yaml") if run else "",
        run=run.name if run else parity["model"],
    )
    write_text(path, page)


def training_charts(metrics: Path) -> list[dict[str, str]]:
    """Loss and validation PQ over the steps of metrics.jsonl: title, and `line_chart`'s; [] without such a file."""
    if not metrics.is_file():
        return []
    rows = []
    for number, line in enumerate(metrics.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise InputError(f"{metrics}: line {number} is not JSON") from None

    def column(key: str, factor: float = 1.0) -> Points:
        return [(row["step"], factor * row[key]) for row in rows if isinstance(row.get(key), int | float)]

    charts = []
    loss = column("loss")
    if len(loss) > 1:
        charts.append({"title": "Training loss"} | line_chart({"loss": smooth(loss, max(1, len(loss) // 25))}, loss))
    scores = {"all": column("pq", 100), "things": column("pq_things", 100), "stuff": column("pq_stuff", 100)}
    scores = {name: line for name, line in scores.items() if len(line) > 1}
    if scores:
        charts.append({"title": "Validation PQ"} | line_chart(scores))
    return charts


def _pictures(example: Example, categories: Categories) -> dict[str, Any]:
    photo = example.photo
    pictures = [
        {"title": "Image", "note": f"{photo.shape[1]} × {photo.shape[0]}", "src": embed(photo), "difference": None},
        {
            "title": "Truth",
            "note": f"{len(example.truth.segments)} segments",
            "src": embed(overlay(photo, example.truth, categories, scores=False)),
            "difference": None,
        },
    ]
    for shot in example.shots:
        note = "no segments" if shot.pq is None else f"PQ {100 * shot.pq:.1f}"
        same = shot.identical is None or bool(shot.identical.all())
        if shot.identical is not None:
            note += f" · {share(float(shot.identical.mean()))} identical"
            note += "" if shot.batch == 1 else f" (batch {shot.batch})"
        pictures.append(
            {
                "title": title(shot.runtime),
                "note": note,
                "src": embed(overlay(photo, shot.result, categories)),
                "difference": None if same else embed(difference_picture(photo, shot.identical)),
            }
        )
    return {"file_name": example.file_name, "kind": example.kind, "pictures": pictures}


def difference_picture(photo: np.ndarray, identical: np.ndarray | None) -> np.ndarray:
    """The photo in dim gray with the differing pixels in red."""
    gray = np.repeat((photo.mean(2, keepdims=True) * 0.45).astype(np.uint8), 3, axis=2)
    return gray if identical is None else np.where(identical[..., None], gray, np.array([255, 60, 60], np.uint8))


def embed(image: np.ndarray) -> str:
    """uint8 H x W x 3 as a data: address, JPEG, no side longer than PICTURE_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def share(fraction: float) -> str:
    """A share of pixels for people: never rounded up to 100 %."""
    return "100 %" if fraction == 1 else f"{np.floor(fraction * 1e5) / 1e3:.3f} %"


def _points(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _signed(fraction: float) -> str:
    return "0" if fraction == 0 else f"{100 * fraction:+.3f}"


def title(runtime: str) -> str:
    """A runtime's name as people write it."""
    return RUNTIMES[runtime].title if runtime in RUNTIMES else runtime


def _largest(column: dict[str, Any]) -> float:
    return max(abs(value) for value in column["difference"].values())


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
