"""docs/overview.jpg: a held-out photo, its panoptic overlay, and the parity table of the run. `make overview`

Shows what parity.json and model.onnx of the run say, and nothing else: after another training, make it again.
"""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import typer
from matplotlib.axes import Axes
from PIL import Image

from eval.parity_report import Parity
from upsnet.command_line.options import run_option
from upsnet.datasets.places import File
from upsnet.datasets.validation_set import open_dataset
from upsnet.draw import overlay
from upsnet.errors import InputError
from upsnet.figures import points, share, title
from upsnet.files import write_bytes
from upsnet.metrics.pq import GROUPS
from upsnet.photos import read_photo
from upsnet.result import PanopticResult
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.predictor import predict_photos

INCHES, DPI, QUALITY = (12.4, 3.9), 100, 86  # under 150 KB
SIDE = 480  # pixels that a photo's long side is enlarged to, at least, so that labels leave room for the shapes


def pictures(model: Path, photo_file: File) -> tuple[np.ndarray, np.ndarray]:
    """The photo and its overlay by the ONNX file, uint8 H x W x 3, enlarged by the same whole factor."""
    photo = read_photo(photo_file)
    with closing(OnnxRuntimePredictor(model)) as predictor:
        (result,) = predict_photos(predictor, [photo])
    factor = -(-SIDE // max(photo.shape[:2]))
    height, width = photo.shape[0] * factor, photo.shape[1] * factor
    photo = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
    result = PanopticResult(result.ids.repeat(factor, 0).repeat(factor, 1), result.segments)
    return photo, overlay(photo, result, predictor.manifest.categories_table, scores=False)


def table_rows(parity: Parity) -> list[list[str]]:
    """One row a runtime and batch size: PQ of all, things and stuff, and the share of identical pixels."""
    rows = []
    for column in parity.columns:
        figures = [points(column.results[group].pq) for group in GROUPS]
        same = "reference" if column.reference else share(column.identical)
        rows.append([title(column.runtime), str(column.batch), *figures, same])
    return rows


def draw(photo: np.ndarray, coloured: np.ndarray, parity: Parity, path: Path) -> None:
    """Writes the three panels side by side as a JPEG, atomically."""
    figure, axes = plt.subplots(1, 3, figsize=INCHES, dpi=DPI, width_ratios=(1, 1, 1.45), layout="constrained")
    for axis, picture, heading in zip(axes, (photo, coloured), ("photo", "panoptic result"), strict=False):
        axis.imshow(picture)
        axis.set_title(heading)
        axis.axis("off")
    _draw_table(axes[2], parity)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg", pil_kwargs={"quality": QUALITY, "optimize": True})
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def _draw_table(axis: Axes, parity: Parity) -> None:
    axis.axis("off")
    axis.set_title(f"PQ of {parity.model} on {parity.dataset.images} held-out images, by runtime")
    headings = ["runtime", "batch", "PQ", "things", "stuff", "same pixels"]
    widths = [0.29, 0.11, 0.11, 0.13, 0.12, 0.24]
    table = axis.table(table_rows(parity), colLabels=headings, colWidths=widths, loc="upper center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(11)
    table.scale(1, 2.1)
    for row in range(len(parity.columns) + 1):
        table[row, 0].set_text_props(ha="left")


def main(
    run: Annotated[Path, run_option("The run: parity.json, model.onnx, config.yaml.")] = Path("runs/demo"),
    image: Annotated[str, typer.Option(help="File name of one image of its validation set.")] = "000001000014.png",
    out: Annotated[Path, typer.Option(help="The JPEG to write.")] = Path("docs/overview.jpg"),
) -> None:
    """Draw a photo, its overlay and the parity table of a run."""
    dataset = open_dataset(None, run=run)
    photo_file = next((each.photo for each in dataset.records if each.file_name == image), None)
    if photo_file is None:
        raise InputError(f"{image}: no such image in {dataset.split.json_file}; --image names one of its photos")
    draw(*pictures(run / "model.onnx", photo_file), Parity.load(run / "parity.json"), out)
    print(f"wrote {out}")
