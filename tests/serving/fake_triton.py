"""The little of Triton's Python backend that the models of triton_repo/ use, without a server."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import ClassVar, NamedTuple

import numpy as np
import pytest

from serving.repository import TEMPLATE


class FakeError(Exception):
    INVALID_ARG, INTERNAL, CANCELLED, UNAVAILABLE = "INVALID_ARG", "INTERNAL", "CANCELLED", "UNAVAILABLE"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array

    @staticmethod
    def from_dlpack(name: str, other: Tensor) -> Tensor:
        return Tensor(name, other.array)


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: FakeError | None = None) -> None:
        self.outputs = {each.name: each.array for each in output_tensors or []}
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> FakeError:
        assert self._error is not None
        return self._error

    @property
    def refused(self) -> tuple[str, str]:
        return self.error().code(), self.error().message()


class Request(NamedTuple):
    """What Triton hands to a model."""

    tensors: Mapping[str, np.ndarray]
    wanted: tuple[str, ...] = ()
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)


class MetricFamily:
    """Keeps what was counted, of all families and labels."""

    COUNTER = "counter"
    counted: ClassVar[Counter[tuple[str, ...]]] = Counter()

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert kind == self.COUNTER and name.endswith("_total") and description
        self.name = name

    def Metric(self, labels: dict[str, str]) -> SimpleNamespace:  # Triton's name
        return SimpleNamespace(increment=lambda value: self.counted.update({(self.name, *labels.values()): value}))


class Triton:
    """The backend's module, what models told the log, and `network`, which answers what a model asks of another."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.network: Callable[..., Response] = lambda **_: Response(error=FakeError("no network"))
        self.module = ModuleType("triton_python_backend_utils")
        MetricFamily.counted = Counter()
        self.names = dict(
            TritonError=FakeError,
            TritonModelException=FakeError,
            Logger=SimpleNamespace(**dict.fromkeys(("log_error", "log_info", "log_warn"), self.log.append)),
            get_input_tensor_by_name=lambda request, name: Tensor(name, request.tensors[name]),
            get_output_tensor_by_name=lambda response, name: Tensor(name, response.outputs[name]),
            Tensor=Tensor,
            MetricFamily=MetricFamily,
            InferenceResponse=Response,
            InferenceRequest=lambda **asked: SimpleNamespace(exec=lambda: self.network(**asked)),
            PreferredMemory=lambda kind, device: None,
            TRITONSERVER_MEMORY_CPU=0,
        )

    def load(self, model: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        """A model's model.py. Triton gives its module the names when that has been imported."""
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", self.module)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        spec = importlib.util.spec_from_file_location(f"{model}_model", TEMPLATE / model / "1/model.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
        vars(self.module).clear()
        spec.loader.exec_module(module)
        vars(self.module).update(self.names)
        return module


def arguments(**parameters: str) -> dict[str, str]:
    """Of `initialize`."""
    entries = {key: {"string_value": value} for key, value in parameters.items()}
    return {"model_config": json.dumps({"parameters": entries}), "model_version": "1"}
