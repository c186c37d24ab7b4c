"""The server's own environment, .venv-triton: finding it, and making it (`make setup`).

Triton comes out of the nvidia-pytriton wheel. Its Python backend has one program ("stub") for each version of Python,
which loads that version's libpython, and breaks silently under the numpy 2 of the rest of the project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from upsnet.command_line.command import run
from upsnet.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-triton"
REQUIREMENTS = ROOT / "serving/requirements-triton.txt"
VERSIONS = ("3.12", "3.11")  # those with a stub, and with wheels of all REQUIREMENTS
READY = ".ready"  # a file in a complete environment, for make
CURE = "`uv python install 3.12` (or Debian's python3.11-venv and libpython3.11), then `make setup`"

# Of glibc: what was large or many goes back to the system when it is freed. Else requests that come and go among others
# leave holes, and every process grows for hours. Bounds as low as glibc's first ones cost a tenth of the throughput.
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}

# Run by another interpreter. sysconfig's LIBDIR is wrong where an installation was moved.
PROBE = """
import json, os, sys, sysconfig
version = sysconfig.get_python_version()
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
library = f"libpython{version}.so.1.0"
libraries = [folder for folder in folders if os.path.isfile(os.path.join(folder, library))]
print(json.dumps([sysconfig.get_path("purelib"), (libraries or [""])[0], version]))
"""


class Environment(NamedTuple):
    """A virtual environment with nvidia-pytriton: its packages, the folder of its libpython, its Python version."""

    folder: Path
    site: Path
    libraries: Path
    version: str

    @classmethod
    def find(cls, folder: Path | None) -> Environment:
        """folder, else $UPSNET_TRITON_ENV, else .venv-triton in the project. InputError when it cannot run Triton."""
        folder = Path(folder or os.environ.get("UPSNET_TRITON_ENV") or ENVIRONMENT).absolute()
        cure = f"make it with `make setup` (Python {' or '.join(VERSIONS)}), or name another with UPSNET_TRITON_ENV"
        try:
            site, libraries, version = _ask(str(folder / "bin/python"), PROBE)
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"the server's environment {folder} is missing or broken; {cure}") from error
        found = cls(folder, Path(site), Path(libraries), version)
        if not libraries:
            raise InputError(f"the server's environment {folder}: its Python has no libpython{version}.so.1.0; {CURE}")
        for file in (found.triton / "bin/tritonserver", *found.backend_files):
            if not file.is_file():
                raise InputError(f"the server's environment {folder} has no {file.relative_to(found.site)}; {cure}")
        return found

    @property
    def triton(self) -> Path:
        return self.site / "pytriton/tritonserver"

    @property
    def backend_files(self) -> list[Path]:
        backend = self.triton / "backends/python"
        stub = self.triton / "python_backend_stubs" / self.version / "triton_python_backend_stub"
        return [backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub]

    def variables(self, modules: Path) -> dict[str, str]:
        """The server's process environment: where the model's process finds libpython, this venv's packages, and the
        Python packages in the folder `modules`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return (
            MALLOC
            | kept
            | {
                "LD_LIBRARY_PATH": f"{self.site / 'nvidia_pytriton.libs'}:{self.libraries}",
                "PYTHONPATH": str(modules),
                "PYTHONDONTWRITEBYTECODE": "1",  # not into the checkout
                "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime would tell its makers what it runs
                "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            }
        )


def find_python() -> str:
    """An interpreter that the server's environment can be made with: this one's own, one on the PATH, one of uv's.

    InputError, with the cure, where there is none: of another version, without venv, or without its shared library.
    """
    own = [f"{sys.base_prefix}/bin/python{version}" for version in VERSIONS]
    for python in [*own, *(f"python{version}" for version in VERSIONS), "python3", *_of_uv()]:
        try:
            _, libraries, version = _ask(python, f"import ensurepip, venv\n{PROBE}")
        except (OSError, subprocess.SubprocessError):
            continue  # not there, one of pyenv's shims without a version behind it, or Debian's without python3-venv
        if version in VERSIONS and libraries:
            return python
    raise InputError(
        f"the server needs Python {' or '.join(VERSIONS)} with venv and its shared library, and none is here; {CURE}"
    )


def make(folder: Path, python: str) -> None:
    """The environment, from nothing. InputError where something else is in its place, or pip fails."""
    if folder.is_symlink():  # what it leads to is somebody's, and would be emptied
        raise InputError(f"{folder} is a link, and would be made anew; remove it, or name what it leads to with VENV=")
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise InputError(f"{folder} is there and is no virtual environment; move it, or name another with VENV=")
    try:
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", "--no-deps", "-r", REQUIREMENTS], check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f"{folder} could not be made; what failed has said why above") from error
    (folder / READY).touch()


def _ask(python: str, script: str) -> list[str]:
    answer = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(answer.stdout)


def _of_uv() -> list[str]:
    """What `uv python install` has put where the PATH does not lead."""
    found = []
    for version in VERSIONS:
        command = ["uv", "python", "find", "--system", version]
        try:
            found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        except (OSError, subprocess.CalledProcessError):
            continue  # no uv, or no such version
    return found


def main(
    folder: Annotated[Path, typer.Argument(help="Where the environment is made; one that is there is made anew.")],
    optional: Annotated[bool, typer.Option(help="Without an interpreter for it, say so and succeed.")] = False,
) -> None:
    """Make the environment of the Triton server."""
    try:
        python = find_python()
    except InputError as error:
        if not optional:
            raise
        print(f"Triton is left out: {error}", file=sys.stderr)
        return
    make(folder, python)
    print(f"{folder}: Python {Environment.find(folder).version}")


if __name__ == "__main__":
    run(main)
