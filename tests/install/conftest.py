"""The wheel, and fresh virtual environments that it is installed into, on this Python and on another one.

Whatever runs in such an environment runs in an empty folder, without PYTHONPATH: the checkout is out of reach.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import onnx
import pytest

from tests.serving.conftest import Exported
from upsnet.contract import METADATA_KEY
from upsnet.files import sha256

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = [f"3.{minor}" for minor in (14, 13, 12, 11)]


def interpreter(version: str) -> str | None:
    """The `python3.X` that is here and makes environments, as a path. pyenv's shims need to be told the version."""
    command = [f"python{version}", "-c", "import ensurepip, sys; print(sys.executable)"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PYENV_VERSION": version}
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


OWN = "{}.{}".format(*sys.version_info)
OTHER = next((version for version in SUPPORTED if version != OWN and interpreter(version)), None)


def pytest_report_header() -> str:
    other = f"Python {OTHER}" if OTHER else f"no other of Python {' '.join(SUPPORTED)} is here: half is skipped"
    return f"installed on: Python {OWN}, {other}"


class Installed:
    """A virtual environment with the wheel in it, and a folder to work in. size: bytes, pip included."""

    def __init__(self, folder: Path, python: str, requirements: Iterable[str], constraints: bool = True) -> None:
        self.folder, self.work = folder / "environment", folder / "work"
        self.work.mkdir(parents=True)
        subprocess.run([python, "-m", "venv", self.folder], check=True)
        self.add(*requirements, constraints=constraints)
        self.size = sum(file.lstat().st_size for file in self.folder.rglob("*"))

    def add(self, *requirements: str, constraints: bool = True) -> None:
        pip: list[str | Path] = [self.folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        if constraints:
            pip += ["-c", ROOT / "constraints.txt"]
        subprocess.run([*pip, *requirements], check=True)

    def run(
        self,
        program: str,
        *arguments: str | Path,
        code: int = 0,
        cwd: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> tuple[str, str]:
        """stdout and stderr of a program in the environment's bin/, which must end with `code`."""
        environment = {"PATH": f"{self.folder / 'bin'}:{os.defpath}", "HOME": str(self.work), "COLUMNS": "120"}
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=cwd or self.work,
            env=environment | (variables or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{program} {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}"
        return done.stdout, done.stderr

    def upsnet(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        return self.run("upsnet", *arguments, code=code)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as anybody would; only hatchling is fetched for it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session", params=["own", "other"])
def python(request: pytest.FixtureRequest) -> str:
    version = OWN if request.param == "own" else OTHER
    if version is None:
        pytest.skip(f"needs a second Python of {' '.join(SUPPORTED)}, e.g. `uv python install 3.13`")
    return interpreter(version) or sys.executable


@pytest.fixture(scope="session")
def base(wheel: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("base"), python, [str(wheel)])


@pytest.fixture(scope="session")
def client(wheel: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What scores and predicts without a server."""
    return Installed(tmp_path_factory.mktemp("client"), python, [f"{wheel}[onnxruntime,metrics]"])


@pytest.fixture(scope="session")
def triton_client(wheel: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("triton_client"), python, [f"{wheel}[triton]"])


@pytest.fixture(scope="session")
def many_photos(wheel: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What predicts photos by the million, on a cluster too."""
    return Installed(tmp_path_factory.mktemp("many_photos"), python, [f"{wheel}[onnxruntime,remote,parquet,ray]"])


@pytest.fixture(scope="session")
def data_client(wheel: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What makes a data set of labels, and nothing else."""
    return Installed(tmp_path_factory.mktemp("data_client"), python, [f"{wheel}[data]"])


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The stand-in model, with its manifest inside the ONNX file too, as an export has it."""
    made = Exported(tmp_path_factory.mktemp("exported"))
    model = onnx.load(made.model)
    onnx.helper.set_model_props(model, {METADATA_KEY: made.manifest.model_dump_json()})
    onnx.save(model, made.model)
    made.manifest.model_copy(update={"onnx_sha256": sha256(made.model)}).save(made.manifest_path)
    return made
