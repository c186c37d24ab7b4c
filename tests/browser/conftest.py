"""A real Triton server, `upsnet viewer` on it, and its page and those of runs in a real Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.browser.colours import scene, write_network
from tests.browser.opened import LIMIT, Opened
from tests.browser.screenshots import Screenshots
from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from serving.server import TritonServer

BUILD = ROOT / "build" / "browser"
ADDRESS = re.compile(r"http://\S+/")
OPTIONS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if "triton_environment" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.triton)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Chromium's program."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    found = os.environ.get("UPSNET_CHROMIUM") or shutil.which(BUILD / "chromium")
    found = found or next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip("no Chromium: `make browser` finds or fetches one")


@pytest.fixture(scope="session")
def axe_core() -> str:
    """The checks of axe-core, a script."""
    path = BUILD / "axe.min.js"
    return path.read_text() if path.is_file() else pytest.skip("no axe-core: `make browser` fetches it")


@pytest.fixture(scope="module")  # no longer: an event loop runs in the thread of Playwright's API as long as it is open
def browser(chromium: str) -> Iterator[Browser]:
    pytest.importorskip("playwright", reason="needs Playwright's driver, which `make setup` installs")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=LIMIT)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        try:
            yield opened
        finally:
            opened.close()


class Networks(NamedTuple):
    """Two ONNX files, see colours.py."""

    colours: Path
    others: Path


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("colours")
    return Networks(write_network(folder / "colours.onnx"), write_network(folder / "others.onnx", other=True))


def start_triton(networks: Networks, environment: Path, folder: Path, port: int = 0) -> TritonServer:
    """A server of `colours`, not started yet."""
    from serving.repository import deploy
    from serving.server import TritonServer
    from upsnet.contract import manifest_path

    repository = folder / "repository"
    if not repository.exists():
        deploy(networks.colours, manifest_path(networks.colours), repository)
    return TritonServer(repository, environment=environment, grpc_port=port)


@pytest.fixture(scope="session")
def triton(
    networks: Networks, triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """One server for all tests that leave it alive."""
    with start_triton(networks, triton_environment, tmp_path_factory.mktemp("triton")) as running:
        yield running


@contextmanager
def viewer(*options: str | Path) -> Iterator[str]:
    """`upsnet viewer` on a free port, and its address."""
    command = [sys.executable, "-m", "upsnet", "viewer", "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        found = ADDRESS.search(process.stdout.readline())
        assert found, f"upsnet viewer ended with status {process.wait(10)}"
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def address(triton: TritonServer, networks: Networks) -> Iterator[str]:
    """Of a viewer with the server's model, and both networks in its own process."""
    with viewer(
        "--url", f"grpc://{triton.url}", "--compare", networks.colours, "--compare", networks.others
    ) as running:
        yield running


@pytest.fixture
def opened(browser: Browser, address: str, tmp_path: Path) -> Iterator[Opened]:
    """The page, in a browser that has not seen it."""
    with Opened.of(browser, address, tmp_path) as page:
        yield page


@pytest.fixture(scope="session")
def screenshots() -> Iterator[Screenshots]:
    """They are in build/browser/screenshots.html, when all tests have been run."""
    taken = Screenshots()
    yield taken
    taken.write(BUILD / "screenshots.html")


@pytest.fixture(scope="session")
def photo() -> bytes:
    return scene()
