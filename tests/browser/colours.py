"""A network that reads its answer out of the photo's colours, and a photo for it: what each pixel is, is known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from upsnet.categories import Category
from upsnet.contract import METADATA_KEY, manifest_path
from upsnet.files import sha256
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest

HEIGHT, WIDTH = 480, 640
STEP = 32  # of red: a pixel belongs to row `red // STEP`, 0 is void
CATEGORIES = [  # in contiguous order
    Category(id=1, name="sky", isthing=False, color=(70, 130, 180)),
    Category(id=2, name="grass", isthing=False, color=(107, 142, 35)),
    Category(id=3, name="house", isthing=False, color=(102, 102, 156)),
    Category(id=11, name="person", isthing=True, color=(220, 20, 60)),
    Category(id=18, name="dog", isthing=True, color=(255, 170, 30)),
    Category(id=19, name="cat", isthing=True, color=(200, 80, 200)),
    Category(id=37, name="ball", isthing=True, color=(250, 250, 90)),
]


class Row(NamedTuple):
    """A segment of the network's answer."""

    category: int  # contiguous
    score: float
    color: tuple[int, int]  # green and blue of the photo's pixels; red is the row's
    inside: tuple[int, int]  # x, y of a pixel of it in `scene`, well away from its border


ROWS = {
    1: Row(0, 1.0, (130, 215), (80, 60)),
    2: Row(1, 1.0, (150, 60), (60, 440)),
    3: Row(2, 1.0, (118, 120), (470, 150)),
    4: Row(3, 0.97, (60, 70), (150, 260)),
    5: Row(3, 0.81, (95, 130), (230, 290)),
    6: Row(4, 0.64, (150, 70), (380, 400)),
    7: Row(6, 0.55, (225, 95), (560, 390)),
}
VOID = (620, 100)  # x, y of a pixel of `scene` that belongs to nothing


def rows_of_scene() -> np.ndarray:
    """uint8 HEIGHT x WIDTH: the row of each pixel, 0 void."""
    image = Image.new("L", (WIDTH, HEIGHT), 1)
    draw = ImageDraw.Draw(image)
    draw.rectangle((600, 0, WIDTH, 239), fill=0)
    draw.rectangle((0, 240, WIDTH, HEIGHT), fill=2)
    draw.polygon([(390, 110), (470, 40), (550, 110), (550, 260), (390, 260)], fill=3)
    for row, x, y in ((5, 230, 170), (4, 150, 140)):  # the second hides a part of the first
        draw.ellipse((x - 28, y, x + 28, y + 56), fill=row)
        draw.rounded_rectangle((x - 48, y + 50, x + 48, y + 230), 30, fill=row)
    draw.ellipse((300, 360, 440, 430), fill=6)
    draw.ellipse((410, 330, 460, 380), fill=6)
    draw.ellipse((530, 360, 590, 420), fill=7)
    return np.asarray(image)


def scene(height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """The photo, a PNG."""
    rows = rows_of_scene()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[rows == 0] = STEP // 2, 20, 24
    for row, (_, _, color, _) in ROWS.items():
        pixels[rows == row] = STEP * row + STEP // 2, *color
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def write_network(path: Path, *, other: bool = False) -> Path:
    """An ONNX file by upsnet/contract.py, and its manifest. other: the dog is a cat there, and the ball void."""
    rows = np.zeros((1, len(ROWS), 7), np.float32)
    for row, each in ROWS.items():
        rows[0, row - 1, :2] = each.category, each.score
    ball = len(ROWS)
    arrays = {"zero": np.int64(0), "step": np.int32(STEP), "rows": rows, "count": np.array([len(ROWS)], np.int32)}
    nodes = [
        helper.make_node("Gather", ["images", "zero"], ["red"], axis=3),
        helper.make_node("Cast", ["red"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Div", ["wide", "step"], ["row"]),
        helper.make_node("Cast", ["row"], ["panoptic"], to=TensorProto.UINT8),
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "ones"], ["repeats"], axis=0),
        helper.make_node("Expand", ["rows", "repeats"], ["segments"]),
        helper.make_node("Expand", ["count", "batch"], ["segment_count"]),
    ]
    arrays["ones"] = np.ones(2, np.int64)
    if other:
        rows[0, 5, 0] = 5
        arrays |= {"ball": np.int32(ball), "void": np.int32(0)}
        nodes[3:4] = [
            helper.make_node("Equal", ["row", "ball"], ["is_ball"]),
            helper.make_node("Where", ["is_ball", "void", "row"], ["kept"]),
            helper.make_node("Cast", ["kept"], ["panoptic"], to=TensorProto.UINT8),
        ]
    value = helper.make_tensor_value_info
    inputs = [
        value("images", TensorProto.UINT8, ["B", "H", "W", 3]),
        value("sizes", TensorProto.INT32, ["B", 2]),
        value("scales", TensorProto.FLOAT, ["B"]),
    ]
    outputs = [
        value("panoptic", TensorProto.UINT8, ["B", "H", "W"]),
        value("segments", TensorProto.FLOAT, ["B", len(ROWS), 7]),
        value("segment_count", TensorProto.INT32, ["B"]),
    ]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "colours", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    rule = ResizeRule(short_side=HEIGHT, max_side=WIDTH)
    manifest = Manifest(
        name="others" if other else "colours", categories=CATEGORIES, resize=rule, max_detections=len(ROWS)
    )
    model.metadata_props.add(key=METADATA_KEY, value=manifest.model_dump_json())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    manifest.model_copy(update={"onnx_sha256": sha256(path)}).save(manifest_path(path))
    return path
