"""Opening a network in the runtime that is asked for, or that the model is for."""

from __future__ import annotations

import os
from pathlib import Path

from upsnet import DISTRIBUTION
from upsnet.device import AUTO
from upsnet.errors import InputError, first_line
from upsnet.files import PathLike
from upsnet.runtimes.address import parse_address
from upsnet.runtimes.options import RUNTIMES, SERVER, TLS_SCHEME, RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor
from upsnet.workshop import load_module

FILES = {
    name: runtime.file for name, runtime in reversed(RUNTIMES.items()) if runtime.file
}  # the last of RUNTIMES wins
MOST_THREADS = 256  # more only wait for each other
MODELS = "a run's or an engine's folder, an .onnx file, a checkpoint (.safetensors) or grpc://host:port"


def open_runtime(options: RuntimeOptions) -> Predictor:
    """What a command line names (see `choose`). Options of other runtimes are left alone, but for a device.

    Raises InputError for an unknown runtime, one that is not installed, and one without what it needs.
    """
    runtime, place = choose(options)
    if options.device is not None and "device" not in RUNTIMES[runtime].takes:
        raise InputError(f"device {options.device}: the runtime {runtime} has its own; leave it out")
    return _open(runtime, place, options)


def open_source(options: RuntimeOptions) -> Predictor:
    """What `upsnet.load` is given; see there. An option that the runtime does not have is an InputError."""
    runtime, place = find_model(options.run, options.runtime)
    takes = RUNTIMES[runtime].takes
    offered = ("threads", "device", "manifest", "tls", "shared_memory")
    for option in offered:
        if getattr(options, option) is not None and option not in takes:
            known = ", ".join(each for each in offered if each in takes)
            raise InputError(f"{options.run}: {option} is no option of the runtime {runtime}: {known}")
    return _open(runtime, place, options)


def choose(options: RuntimeOptions) -> tuple[str, PathLike]:
    """The runtime, and where its model is: the place given for it, else the run's own file, else `make serve`'s server.

    Without a runtime, the place given tells it, and else the run (see `find_model`).
    """
    runtime, run = options.runtime, options.run
    places = {name: place for name, each in RUNTIMES.items() if (place := getattr(options, each.place)) is not None}
    if runtime is None and places:
        runtime, *others = places
        if others:
            raise InputError(f"there are places for {' and '.join(places)}; say which with --runtime")
    if runtime is None:
        return find_model(run)
    needs = find_runtime(runtime).needs
    if runtime in places:
        return runtime, places[runtime]
    if run is None:
        raise InputError(f"the runtime {runtime} needs {needs}")
    if runtime == "triton" and "://" not in os.fspath(run):
        return runtime, SERVER
    return find_model(run, runtime)


def find_model(source: PathLike | None, runtime: str | None = None) -> tuple[str, PathLike]:
    """The runtime that a source is for, and where its model is: a file, or a server's host:port.

    source: a run's or an engine's folder, an .onnx file, a .safetensors checkpoint or grpc://host:port. runtime: the
    one that is wanted. Raises InputError for what is none of these, and when the two do not go together.
    """
    if runtime is not None:
        find_runtime(runtime)
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise InputError(f"{source!r} is no model; a model is {MODELS}")
    text, path = os.fspath(source), Path(source)
    if "://" in text:
        scheme = TLS_SCHEME if text.startswith(TLS_SCHEME) else ""
        found: dict[str, PathLike] = {"triton": scheme + parse_address(text)}
    elif os.path.isdir(path):
        found = {name: path / file for name, file in FILES.items() if (path / file).is_file()}
        if not found:
            raise InputError(f"{source}: neither a run nor an engine: it has no {' and no '.join(FILES.values())}")
    elif not os.path.isfile(path):
        raise InputError(f"{source}: no such file or folder; a model is {MODELS}")
    else:
        found = {name: path for name, file in FILES.items() if Path(file).suffix == path.suffix}
        if not found:
            hint = "; `upsnet import` reads the original UPSNet's checkpoints" if path.suffix in (".pth", ".pt") else ""
            raise InputError(f"{source}: no model by its name; a model is {MODELS}{hint}")
    if runtime is not None and runtime not in found:
        cure = "; `make onnx` exports it" if path.is_dir() and runtime == "onnxruntime" else ""
        raise InputError(f"{source}: holds nothing for the runtime {runtime}, only for {' and '.join(found)}{cure}")
    return (runtime, found[runtime]) if runtime else next(iter(found.items()))


def _open(name: str, place: PathLike, options: RuntimeOptions) -> Predictor:
    runtime, threads = RUNTIMES[name], options.threads
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
        raise InputError(f"threads {threads!r}: give a number from 1 to {MOST_THREADS}")
    if runtime.file and not os.path.isfile(place):
        raise InputError(f"{place}: no such file; the runtime {name} needs {runtime.needs}")
    options = options._replace(device=AUTO if options.device is None else options.device)
    module, _, predictor = runtime.predictor.partition(":")
    try:
        opened = getattr(load_module(module, f"{runtime.needs}, in the runtime {name},"), predictor)
    except ImportError as error:
        cure = f"pip install '{DISTRIBUTION}[{runtime.extra}]'"
        raise InputError(f"the runtime {name} is not installed ({first_line(error)}): {cure}") from None
    return opened(place, **{each: value for each in runtime.takes if (value := getattr(options, each)) is not None})
