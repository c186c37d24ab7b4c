"""The client as `upsnet.load` opens it: a `Predictor` of tensors that takes photos, too."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from upsnet.client.client import in_flight
from upsnet.client.conversation import Known, look_around
from upsnet.manifest import Manifest
from upsnet.named_photos import NamedPhoto
from upsnet.prediction import PanopticPrediction
from upsnet.runtimes.kserve import CLASSES
from upsnet.runtimes.triton import TritonPredictor


class PhotoTritonPredictor(TritonPredictor):
    """A `TritonPredictor` that sends photos as they are, where the server takes them: so the network's size may change
    with another version."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        try:
            opened = self.connection.run(look_around(self.served, self.connection.regions.infer))
        except BaseException:
            self.close()
            raise
        self._known = Known(opened, CLASSES)

    @property
    def in_service(self) -> Manifest:
        """Of the version that answered last."""
        return self._known.opened.served.manifest

    def answers(self, photos: Iterator[NamedPhoto], at_once: int) -> Iterator[PanopticPrediction]:
        with closing(self.attempts(photos, at_once)) as attempts:
            for attempt in attempts:
                yield attempt.result()

    def attempts(self, photos: Iterator[NamedPhoto], at_once: int) -> Generator[Future[PanopticPrediction]]:
        with closing(in_flight(self.connection, self._known, photos, at_once)) as waiting:
            for _, future in waiting:
                yield future
