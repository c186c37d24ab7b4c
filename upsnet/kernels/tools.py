"""Finding programs: compilers, CMake, NVIDIA's profilers."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def find_tool(*names: str) -> str | None:
    """The first of these programs that is there: on the PATH, or where CUDA's toolkit, NVIDIA's profilers and pip put
    theirs."""
    home = os.environ.get("CUDA_HOME")
    toolkits = sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    profilers = sorted(
        (*Path("/opt/nvidia").glob("nsight-*/*"), *Path("/opt/nvidia").glob("nsight-*/*/bin")), reverse=True
    )
    places = [Path(home) / "bin" if home else None, Path(sysconfig.get_path("scripts")), *toolkits, *profilers]
    beyond = os.pathsep.join(str(place) for place in places if place is not None)
    return next(filter(None, (shutil.which(name) or shutil.which(name, path=beyond) for name in names)), None)
