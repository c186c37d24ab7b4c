"""`upsnet.load`: a trained network, in whatever form it comes, as one object that takes photos."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Protocol, TypeVar, overload, runtime_checkable

import numpy as np

from upsnet.categories import Categories
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.manifest import Manifest
from upsnet.named_photos import NamedPhoto, one_photo, photos_of, stream_photos
from upsnet.photos import Photo
from upsnet.prediction import PanopticPrediction
from upsnet.result import PanopticResult
from upsnet.runtimes.open import open_source
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor, predict_photos
from upsnet.runtimes.tls import Tls

OnePhoto = TypeVar("OnePhoto", bound=Photo)


def load(
    source: PathLike,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    manifest: PathLike | None = None,
    tls: Tls | PathLike | bool | None = None,
    shared_memory: bool | None = None,
    version: int | None = None,
) -> Model:
    """Open a trained network; what it is tells which runtime runs it.

    source: a run's folder, or its name in runs/ (its model.onnx in ONNX Runtime; where there is none, its
    last.safetensors in PyTorch), an engine's folder (the one of its engines that its engine.json has chosen), an .onnx
    file (ONNX Runtime), a plan (TensorRT or TensorRT-RTX), a checkpoint .safetensors (PyTorch, from the project's
    checkout), or grpc://host:port (a Triton server; grpcs:// with TLS).

    runtime: which one, where the source has a file for several: "onnxruntime", "pytorch", "tensorrt", "tensorrt-rtx" or
    "torch-tensorrt"; of a run's folder, the engines in its engine/, too. threads: CPU threads of the first two
    (default: theirs). device: what computes: "cpu", "cuda" or "cuda:N", which must be there, or "auto" (the default),
    the first NVIDIA GPU where the runtime has one that works, else the CPU, which TensorRT's engines do not run on;
    `Model.device` tells which. manifest: the
    file that describes a server's model, for a server that does not tell. tls, shared_memory, version: of a server; see
    `upsnet.Client`. Without a version, a Model goes on with the next one that comes into service, unless its classes
    are others: then it ends with an error.

    Raises InputError, in one line with the cure, for what is no model, a package that is not installed, an option that
    the runtime does not have, and a server that does not answer.

    >>> with upsnet.load("runs/demo") as model:  # doctest: +SKIP
    ...     model.predict("street.jpg").save_coco("out")
    """
    options = RuntimeOptions(
        source,
        runtime,
        manifest=manifest,
        tls=tls,
        shared_memory=shared_memory,
        version=version,
        threads=threads,
        device=device,
    )
    return Model(open_source(options))


@runtime_checkable
class PhotoPredictor(Predictor, Protocol):
    """A predictor that takes photos as they are: a server, which reads and resizes them itself."""

    def answers(self, photos: Iterator[NamedPhoto], at_once: int) -> Iterator[PanopticPrediction]:
        """In the order of the photos. `at_once` are asked for at a time."""
        ...

    def attempts(self, photos: Iterator[NamedPhoto], at_once: int) -> Generator[Future[PanopticPrediction]]:
        """The same where one that fails does not end the others. Each is there when it comes, or soon."""
        ...


class Model:
    """A loaded network, from `upsnet.load`. Use it as a context manager, or call `close`."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor: Predictor | None = predictor
        self.manifest: Manifest = predictor.manifest
        self.name: str = predictor.manifest.name
        self.runtime: str = predictor.name  # of upsnet/runtimes/options.py
        self.device: str = predictor.device_name  # "cpu", "cuda:0 (NVIDIA H200)", "the server's"
        self.kernels: str = predictor.kernels  # "libupsnet_onnxruntime.so", "function bodies (no C++ compiler ...)"
        self.categories: Categories = predictor.manifest.categories_table

    @overload
    def predict(self, photo: Photo) -> PanopticPrediction: ...

    @overload
    def predict(self, photo: list[OnePhoto] | tuple[OnePhoto, ...]) -> list[PanopticPrediction]: ...

    def predict(
        self, photo: Photo | list[OnePhoto] | tuple[OnePhoto, ...]
    ) -> PanopticPrediction | list[PanopticPrediction]:
        """What is in a photo; of a list of photos, of any sizes, a list.

        A list goes in batches of the manifest's max_batch, photos of one shape together: no answer depends on the
        other photos.

        photo: a path, the bytes of an encoded image, a PIL image, or a uint8 H x W x 3 array in RGB (OpenCV's are BGR:
        `image[..., ::-1]`). Orientation (EXIF), CMYK, 16 bits and transparency are seen to.
        Raises InputError for what is no photo, and when the server fails.
        """
        if isinstance(photo, list | tuple):
            return list(self._answers(photos_of(photo), self.manifest.max_batch))
        return next(self._answers(iter([one_photo(photo, "model.stream")]), 1))

    def stream(self, source: PathLike | Iterable[Photo], batch_size: int = 1) -> Generator[PanopticPrediction]:
        """Predictions one after the other, while the photos are read: memory does not grow with their number.

        source: a folder (its photos and videos, and those of its subfolders, by name), a pattern such as
        "photos/*.jpg", a video (frame by frame, with PyAV), a photo, or any iterable of photos. What a folder holds
        besides is left out, with a warning of the logger `upsnet`. batch_size: photos that are read before they go to
        the network, those of one shape together, at most the manifest's max_batch: more than 1 keeps a GPU busy. Of a
        server, how many it is asked for at once.
        Raises InputError as `predict` does, for what is not there, and for a folder or a pattern without photos.

        >>> for prediction in model.stream("photos"):  # doctest: +SKIP
        ...     print(prediction)
        """
        if not (isinstance(batch_size, int) and 1 <= batch_size <= self.manifest.max_batch):
            most = self.manifest.max_batch
            raise InputError(f"batch_size {batch_size!r}: give 1 to {most}, the model's largest batch")
        return self._answers(stream_photos(source), batch_size)

    def close(self) -> None:
        """Free the network or the connection. A second call does nothing."""
        if self._predictor is not None:
            self._predictor.close()
            self._predictor = None

    def __enter__(self) -> Model:
        self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        stuff, things = self.categories.num_stuff, self.categories.num_things
        closed = "" if self._predictor else ", closed"
        return f"<Model {self.name} in {self.runtime}: {stuff} stuff, {things} things; kernels: {self.kernels}{closed}>"

    def _opened(self) -> Predictor:
        if self._predictor is None:
            raise InputError(f"the model {self.name} is closed; load it again")
        return self._predictor

    def _answers(self, photos: Iterator[NamedPhoto], batch_size: int) -> Generator[PanopticPrediction]:
        predictor = self._opened()
        if isinstance(predictor, PhotoPredictor):
            yield from predictor.answers(photos, batch_size)
            return
        while batch := [(each, each.read()) for each in islice(photos, batch_size)]:
            results = _predict_by_shape(self._opened(), [photo for _, photo in batch])
            for result, (each, photo) in zip(results, batch, strict=True):
                yield PanopticPrediction(result, self.categories, photo, each.source, each.name)


def _predict_by_shape(predictor: Predictor, photos: list[np.ndarray]) -> list[PanopticResult]:
    """Photos of one shape at a time: the padding, which the network sees at the border, is that of each photo alone."""
    rule = predictor.manifest.resize
    shapes = [rule.padded_size(*rule.network_size(*photo.shape[:2])) for photo in photos]
    results: dict[int, PanopticResult] = {}
    for shape in dict.fromkeys(shapes):
        places = [place for place, other in enumerate(shapes) if other == shape]
        results |= zip(places, predict_photos(predictor, [photos[place] for place in places]), strict=True)
    return [results[place] for place in range(len(photos))]
