"""A page as a test sees it: photos are given, pixels looked at, and nothing may go wrong unseen."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser.colours import HEIGHT, WIDTH

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Error, JSHandle, Locator, Page

LIMIT = 20_000  # ms: a guard
HOW: dict[str, dict[str, Any]] = {  # options of the browser's context
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 360, "height": 740},
        "is_mobile": True,
        "has_touch": True,
        "device_scale_factor": 2,
    },
}
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
FILES = """files => {
    const transfer = new DataTransfer();
    for (const [name, content, type] of files)
        transfer.items.add(new File([Uint8Array.from(atob(content), (each) => each.charCodeAt(0))], name, {type}));
    return transfer;
}"""
PIXEL = """([id, x, y]) => {
    const canvas = document.querySelector(`#${id} canvas`);
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.drawImage(canvas, -Math.floor(x * canvas.width), -Math.floor(y * canvas.height));
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


class Opened:
    """A page. Errors of the browser's console and of the page's scripts end the test, unless it forgives them."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.faults: list[str] = []
        page.set_default_timeout(LIMIT)
        page.on("console", self._on_console)
        page.on("pageerror", self._on_error)

    @classmethod
    @contextmanager
    def of(
        cls, browser: Browser, address: str, folder: Path, state: str | None = "empty", **options: Any
    ) -> Iterator[Opened]:
        """Opens it, and waits for the viewer's state, if it is the viewer; options: of the browser's context, as HOW
        has them."""
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        try:
            opened = cls(context.new_page(), folder)
            opened.page.goto(address)
            if state:
                opened.wait(state)
            yield opened
            assert not opened.faults, opened.faults
        finally:
            context.close()

    def _on_console(self, message: ConsoleMessage) -> None:
        url = message.location.get("url", "")
        if url.endswith("/thumb"):  # of a photo that the viewer, which all tests share, has just let go
            return
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.text} {url}")

    def _on_error(self, error: Error) -> None:
        self.faults.append(str(error))

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def wait(self, state: str) -> None:
        """Until the page is in a state: empty, asking, shown, error."""
        from playwright.sync_api import expect

        expect(self.find("html")).to_have_attribute("data-state", state, timeout=LIMIT)

    def choose(self, content: bytes, name: str = "scene.png", state: str = "shown") -> None:
        """A photo from the machine's files."""
        self.find("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        self.wait(state)

    def drop(self, files: dict[str, bytes], state: str = "shown") -> None:
        """Photos that are dragged onto the page."""
        transfer = self.files(files)
        for event in ("dragenter", "dragover", "drop"):
            self.find("main").dispatch_event(event, {"dataTransfer": transfer})
        self.wait(state)

    def files(self, files: dict[str, bytes]) -> JSHandle:
        """Files in a DataTransfer, as a browser hands them over."""
        given = [[name, self.base64(content), "image/png"] for name, content in files.items()]
        return self.page.evaluate_handle(FILES, given)

    @staticmethod
    def base64(content: bytes) -> str:
        return base64.b64encode(content).decode()

    def until(self, condition: Callable[[], bool]) -> None:
        """For what no locator waits for."""
        end = time.monotonic() + LIMIT / 1000
        while not condition():
            assert time.monotonic() < end, "it did not come true"
            self.page.wait_for_timeout(20)

    def pixel(self, x: int, y: int, pane: str = "a") -> tuple[int, int, int]:
        """The colour on the screen, by the scene's pixels."""
        red, green, blue = self.page.evaluate(PIXEL, [f"pane-{pane}", (x + 0.5) / WIDTH, (y + 0.5) / HEIGHT])
        return red, green, blue

    def point_at(self, x: int, y: int, pane: str = "a") -> None:
        """The pointer goes to a pixel of the scene."""
        canvas = self.find(f"#pane-{pane} canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        across, down = (x + 0.5) / WIDTH * box["width"], (y + 0.5) / HEIGHT * box["height"]
        self.page.mouse.move(box["x"] + across, box["y"] + down)

    def compare(self, title: str, side: str = "b", state: str | None = None) -> None:
        """The first model whose title holds this becomes the second, or side "a"'s; until all have answered."""
        state = state or ("empty" if self.find("html").get_attribute("data-state") == "empty" else "shown")
        option = self.find(f"#model-{side} option").filter(has_text=title).first
        option.wait_for(state="attached")
        self.find(f"#model-{side}").select_option(label=option.inner_text())
        self.wait(state)

    def forgive(self, *words: str) -> None:
        """Faults with these words are part of the test."""
        self.faults = [each for each in self.faults if not any(word in each for word in words)]

    def findings(self, axe_core: str) -> list[str]:
        """What axe-core finds fault with, each with its impact."""
        self.page.evaluate(axe_core)
        found = self.page.evaluate("() => axe.run()")
        return [
            f"{each['impact']} {each['id']}: {node['html']} {node['failureSummary']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]
