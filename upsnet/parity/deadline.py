"""A predictor that answers in time, or is said not to."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

from upsnet.errors import ServerError
from upsnet.geometry import NetworkBatch
from upsnet.runtimes.predictor import Predictor, RawPrediction


class InTime:
    """A `Predictor` that asks another one and waits at most `seconds` for each answer: then a ServerError.

    name: what it is called from now on. A call that does not return keeps its thread; nothing waits for that one, not
    even the end of the program, and every further call is an error at once.
    """

    def __init__(self, predictor: Predictor, seconds: float, name: str) -> None:
        self.name, self.manifest = name, predictor.manifest
        self._predictor, self._seconds = predictor, seconds
        self._calls: queue.SimpleQueue[tuple[NetworkBatch, Future[RawPrediction]] | None] = queue.SimpleQueue()
        self._hangs = False
        # One thread for all calls: OpenMP makes its own threads anew for each thread that calls it.
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def device_name(self) -> str:
        return self._predictor.device_name

    @property
    def kernels(self) -> str:
        return self._predictor.kernels

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        """What the other one answers, and its errors."""
        answer: Future[RawPrediction] = Future()
        if not self._hangs:
            self._calls.put((batch, answer))
            try:
                return answer.result(self._seconds)
            except TimeoutError:
                if answer.done():  # it is the predictor's own
                    raise
                self._hangs = True
        raise ServerError(f"no answer within {self._seconds:g} s", "DEADLINE_EXCEEDED")

    def close(self) -> None:
        """Ends the thread; the other predictor stays open, its owner closes it."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            batch, answer = call
            try:
                answer.set_result(self._predictor.predict(batch))
            except BaseException as error:  # the caller's
                answer.set_exception(error)
