"""Tries to open a model in a runtime, in a process of its own: what is broken may end that, and not the one that asks.

    python -m upsnet.runtimes.attempt FILE RUNTIME DEVICE

The last line of stdout is JSON: {"opened": what runs it}; or {"error": one line}, and of TensorRT-RTX, which can tell
an engine's faults apart, its "diagnostics".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from upsnet.device import AUTO
from upsnet.errors import InputError
from upsnet.runtimes.open import open_source
from upsnet.runtimes.options import RuntimeOptions
from upsnet.tensorrt.api import make_logger, open_api


def main() -> None:
    file, runtime, device = sys.argv[1:]
    try:
        wanted = None if device == AUTO else device
        predictor = open_source(RuntimeOptions(run=file, runtime=runtime, device=wanted))
    except InputError as error:
        answer = {"error": str(error), "diagnostics": diagnostics(Path(file)) if runtime == "tensorrt-rtx" else ""}
    else:
        answer = {"opened": f"{predictor.device_name}, kernels: {predictor.kernels}"}
        predictor.close()
    print(json.dumps(answer), flush=True)


def diagnostics(engine: Path) -> str:
    """TensorRT-RTX's words for why an engine is not valid here, by its header: ` (UNSUPPORTED_CC)`; "" for none."""
    try:
        api = open_api("tensorrt-rtx")
        runtime = api.module.Runtime(make_logger(api))
        with engine.open("rb") as file:
            found = int(runtime.get_engine_validity(file.read(runtime.engine_header_size))[1])
    except (InputError, OSError, AttributeError, RuntimeError, TypeError):  # one of them was the fault
        return ""
    names = [name for name, bit in api.module.EngineInvalidityDiagnostics.__members__.items() if found & int(bit)]
    return f" ({', '.join(names)})" if names else ""


if __name__ == "__main__":
    main()
