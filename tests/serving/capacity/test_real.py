"""The queue of a real Triton: a network that sleeps, so that its times are known on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from serving.capacity.calibration import calibrate
from serving.capacity.report import check
from serving.capacity.simulation import most
from serving.load_test import command
from serving.load_test.report import LoadReport
from serving.repository import deploy
from serving.server import TritonServer
from tests.serving.conftest import Exported
from upsnet.command_line.command import make_app

SLEEPS = """

import time

_Right = TritonPythonModel


class TritonPythonModel(_Right):
    def run_batch(self, requests):
        time.sleep(0.03 + 0.008 * sum(len(images) for images, *_ in requests))
        return super().run_batch(requests)
"""
WITHIN = 1.4  # by what factor a busy machine may be wrong


@pytest.mark.triton
def test_a_real_server_behaves_as_planned(exported: Exported, triton_environment: Path, tmp_path: Path) -> None:
    """As on a GPU: one instance of the network, which forms batches of what comes while it computes."""
    repository = deploy(exported.model, exported.manifest_path, tmp_path / "repository")
    code, config = repository / "upsnet/1/model.py", repository / "upsnet/configs/cpu.pbtxt"
    code.write_text(code.read_text() + SLEEPS)
    text = config.read_text()
    assert "count: 2" in text
    config.write_text(text.replace("count: 2", "count: 1"))
    Image.new("RGB", (96, 64), (255, 0, 0)).save(tmp_path / "photo.png")
    with TritonServer(repository, environment=triton_environment) as server:
        arguments = ["--url", server.url, "--metrics-url", f"{server.host}:{server.ports['metrics']}"]
        arguments += ["--photos", f"{tmp_path}/photo.png", "--out", f"{tmp_path}/load", "--requests", "80"]
        arguments += ["--concurrency", "1", "4", "8", "16", "--rate", "40"]
        result = CliRunner().invoke(make_app(command.main), arguments)
    assert result.exit_code == 0, result.output
    report = LoadReport.load(tmp_path / "load/load.json")
    assert (report.max_batch, report.instances) == (4, {"upsnet": 1, "upsnet_photo": 2})
    found = calibrate(report)
    print(found.fits, found.replica.model_copy(update={"variation": ()}))
    for fit in found.fits:
        assert 1 / WITHIN < fit.repeated / fit.measured < WITHIN
    assert found.replica.seconds(4) < 3 * found.replica.seconds(1)  # 62 and 38 ms: a batch of four is no four photos
    made = check(found.replica, most(found.replica), report.stages[-1])
    print(made)
    for name in ("p50", "p95"):
        least, greatest = made.between_ms[name]
        assert least / WITHIN < made.measured_ms[name] < greatest * WITHIN
