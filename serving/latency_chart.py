"""What pictures of latencies share: an axis of milliseconds, and the file."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from upsnet.files import PathLike, write_bytes


def in_milliseconds(axes: Axes) -> None:
    """The vertical axis is one of milliseconds, logarithmic, with a grid behind what is drawn."""
    axes.set(yscale="log", ylabel="ms")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(color="#e3e7ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write(figure: Figure, path: PathLike) -> None:
    """A PNG, atomically. WriteError where it cannot be written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
