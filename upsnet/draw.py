"""A result drawn over its photo."""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.labels import labels_of, open_font
from upsnet.result import PanopticResult, Segment

LEGIBLE_SIDE = 320  # smaller photos are enlarged until their long side reaches this, so that labels fit
GRID = 160  # labels are placed on a map of at most this side
OPACITY = 0.5
SMALL_IDS = 1 << 16  # ids below, as predictions have them, are looked up in a table: ten times as fast

Color = tuple[int, int, int]


def overlay(photo: np.ndarray, result: PanopticResult, categories: Categories, scores: bool = True) -> np.ndarray:
    """Coloured segments, their outlines and names (things with their score) over a uint8 H x W x 3 photo.

    `scores` False leaves the scores out, as for the truth.

    -> uint8 of the photo's size, or of a whole multiple of it where its long side is under LEGIBLE_SIDE. Void stays
    as it is in the photo. A label that would cover a larger segment's label is left out.
    """
    if photo.shape != (*result.ids.shape, 3) or photo.dtype != np.uint8:
        raise InputError(
            f"the photo must be uint8 RGB of the result's size {list(result.ids.shape)}, "
            f"not {photo.dtype} {list(photo.shape)}"
        )
    factor = -(-LEGIBLE_SIDE // max(photo.shape[:2])) if max(photo.shape[:2]) < LEGIBLE_SIDE else 1
    height, width = photo.shape[0] * factor, photo.shape[1] * factor
    index = _index_map(result)
    if factor > 1:
        index = index.repeat(factor, 0).repeat(factor, 1)
        photo = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
    colors = segment_colors(result.segments, categories)
    blended = _blend(photo, index, colors)
    blended[_outline(index, thickness=max(1, round(min(height, width) / 500)))] = 255
    image = Image.fromarray(blended)
    _draw_labels(image, index, result.segments, colors, categories, scores)
    return np.array(image)


def _index_map(result: PanopticResult) -> np.ndarray:
    """int16 H x W: 0 where no segment is, else 1 + the segment's position in the list. Ids may be any integers."""
    ids = np.array([segment.id for segment in result.segments], result.ids.dtype)
    if not len(ids):
        return np.zeros(result.ids.shape, np.int16)
    if min(result.ids.min(), ids.min()) >= 0 and (most := max(result.ids.max(), ids.max())) < SMALL_IDS:
        places = np.zeros(int(most) + 1, np.int16)
        places[ids] = 1 + np.arange(len(ids))
        return places[result.ids]
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, result.ids, sorter=order), len(ids) - 1)
    return np.where(ids[order][place] == result.ids, order[place] + 1, 0).astype(np.int16)


def segment_colors(segments: list[Segment], categories: Categories) -> list[Color]:
    """One colour for each segment; the second and later instances of a thing turn away from the class's colour."""
    seen: dict[int, int] = {}
    colors = []
    for segment in segments:
        category = categories[segment.category]
        rank = seen.get(segment.category, 0)
        seen[segment.category] = rank + 1
        colors.append(_shade(category.color, rank) if category.isthing else category.color)
    return colors


def _shade(color: Color, rank: int) -> Color:
    """Shade number `rank` of a colour: 0 is the colour itself, the others differ in hue and in brightness."""
    if rank == 0:
        return color
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    turn = rank * 0.618033988749895 % 1.0
    brightness = 0.45 + 0.55 * ((value + turn) % 1.0)
    rgb = colorsys.hsv_to_rgb((hue + 0.16 * (turn - 0.5)) % 1.0, max(saturation, 0.35), brightness)
    return round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)


def _blend(photo: np.ndarray, index: np.ndarray, colors: list[Color]) -> np.ndarray:
    """Mix the photo with the segments' colours, one channel at a time to spare memory."""
    table = np.array([(0, 0, 0), *colors], np.uint8) * np.float32(OPACITY)
    keep = np.full(len(table), 1 - OPACITY, np.float32)
    keep[0] = 1
    blended = np.empty(photo.shape, np.uint8)
    for channel in range(3):
        blended[..., channel] = photo[..., channel] * keep[index] + table[index, channel]
    return blended


def _outline(index: np.ndarray, thickness: int) -> np.ndarray:
    """bool H x W: pixels on either side of a border between two segments."""
    edge = np.zeros(index.shape, bool)
    for step in range(1, thickness + 1):
        edge[step:] |= index[step:] != index[:-step]
        edge[:, step:] |= index[:, step:] != index[:, :-step]
    return edge


class _Box(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _draw_labels(
    image: Image.Image,
    index: np.ndarray,
    segments: list[Segment],
    colors: list[Color],
    categories: Categories,
    scores: bool,
) -> None:
    """Names on their segments' colours, the largest segment first."""
    draw = ImageDraw.Draw(image)
    size = max(12, round(max(image.size) / 52))
    labels = labels_of(categories)
    margin = max(2, size // 5)
    placed: list[_Box] = []
    points = _label_points(index, len(segments))
    for place in sorted(points, key=lambda place: -segments[place].area):
        segment = segments[place]
        category = categories[segment.category]
        label = labels[segment.category]
        font = open_font(label.font, size)
        text = f"{label.text} {segment.score:.2f}" if scores and category.isthing else label.text
        width = round(draw.textlength(text, font)) + 2 * margin
        box = _free_box(points[place], (width, size + 2 * margin), image.size, placed)
        if box is None:
            continue
        placed.append(box)
        draw.rounded_rectangle((box.left, box.top, box.right - 1, box.bottom - 1), margin, fill=colors[place])
        middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
        draw.text(middle, text, fill=_text_color(colors[place]), font=font, anchor="mm")


def _free_box(
    point: tuple[int, int], size: tuple[int, int], image_size: tuple[int, int], placed: list[_Box]
) -> _Box | None:
    """A box of `size` around the point (x, y), or just above or below, inside the image, on no other label."""
    for shift in (0, -1, 1):
        left = min(max(0, point[0] - size[0] // 2), max(0, image_size[0] - size[0]))
        top = point[1] - size[1] // 2 + shift * size[1]
        top = min(max(0, top), max(0, image_size[1] - size[1]))
        box = _Box(left, top, left + size[0], top + size[1])
        if not any(box.meets(other) for other in placed):
            return box
    return None


def _text_color(background: Color) -> str:
    red, green, blue = background
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def label_points(result: PanopticResult) -> dict[int, tuple[int, int]]:
    """Position in result.segments -> the point (x, y) of that segment that is farthest from its outline."""
    return _label_points(_index_map(result), len(result.segments))


def _label_points(index: np.ndarray, count: int) -> dict[int, tuple[int, int]]:
    """`label_points` on an `_index_map`.

    Found on a reduced map; a segment that is lost there gets its first pixel.
    """
    step = -(-max(index.shape) // GRID)
    small = index[step // 2 :: step, step // 2 :: step]
    depth = _depth(small)
    points = {}
    for place in range(count):
        inside = np.where(small == place + 1, depth, 0)
        if inside.any():
            y, x = np.unravel_index(int(inside.argmax()), inside.shape)
            points[place] = (int(x) * step + step // 2, int(y) * step + step // 2)
        elif (pixels := np.flatnonzero(index == place + 1)).size:
            points[place] = (int(pixels[0]) % index.shape[1], int(pixels[0]) // index.shape[1])
    return points


def _depth(index: np.ndarray) -> np.ndarray:
    """Steps to the nearest pixel of another segment or to the border of the image, at least 1."""
    framed = np.pad(index, 1, constant_values=-1)
    alive = np.ones(index.shape, bool)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        alive &= framed[rows : rows + index.shape[0], columns : columns + index.shape[1]] == index
    depth = np.ones(index.shape, np.int32)
    while alive.any():
        depth += alive
        frame = np.pad(alive, 1)
        alive = alive & frame[:-2, 1:-1] & frame[2:, 1:-1] & frame[1:-1, :-2] & frame[1:-1, 2:]
    return depth
