"""Tries to open a model in a runtime, in a process of its own (`python -m upsnet.runtimes.attempt FILE RUNTIME`): what
is broken may end the process, and not the one that asks.

The last line of stdout is JSON: {"error": one line}, or {"opened": what runs it}.
"""

from __future__ import annotations

import json
import sys

from upsnet.errors import InputError
from upsnet.runtimes.open import open_source
from upsnet.runtimes.options import RuntimeOptions


def main() -> None:
    file, runtime = sys.argv[1:]
    device = "cpu" if runtime == "onnxruntime" else None
    try:
        predictor = open_source(RuntimeOptions(run=file, runtime=runtime, device=device))
    except InputError as error:
        answer = {"error": str(error)}
    else:
        answer = {"opened": f"{predictor.device_name}, kernels: {predictor.kernels}"}
        predictor.close()
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
