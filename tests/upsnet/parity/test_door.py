"""The public door: what `upsnet.parity` offers, and that it needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from upsnet import parity


def test_importing_it_loads_nothing_heavy(project_root: Path) -> None:
    code = (
        "import sys, upsnet.parity as p; print(sorted({'numpy', 'torch', 'tqdm'} & set(sys.modules)));"
        "p.judge, p.LabelledPhotos; print(sorted({'hotcoco', 'torch', 'onnxruntime', 'serving'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_every_name_is_there() -> None:
    for name in parity.__all__:
        assert getattr(parity, name).__doc__ and name in dir(parity)
    with pytest.raises(AttributeError, match="no attribute 'judged'"):
        parity.judged  # noqa: B018
