"""docs/moved.md: what still has its name of before 0.2."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

OLD = """
import panoptic.images, panoptic.predictor
from eval.average_precision import AveragePrecision
from panoptic import errors
from panoptic.draw import overlay
for each in (AveragePrecision, errors.InputError, overlay, panoptic.images.read_photo):
    print(each.__module__)
"""


def test_a_program_of_before(project_root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OLD], cwd=project_root, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["upsnet.metrics.average_precision", "upsnet.errors", "upsnet.draw", "upsnet.photos"]
    assert not done.stderr


def test_the_page_has_the_same_homes(project_root: Path) -> None:
    """No name leads elsewhere than the page says."""
    homes = import_module("panoptic").HOMES
    rows = [row for row in (project_root / "docs/moved.md").read_text().splitlines() if row.startswith("| `panoptic/")]
    for name, home in homes.items():
        (row,) = (row for row in rows if f"`panoptic/{name}.py" in row or f" `{name}.py`" in row.split("|")[1])
        place = home.replace(".", "/")
        assert f"`{place}.py`" in row or f"`{Path(place).parent}/`" in row
