"""Opening a network in the runtime that is asked for, or that the model is for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from upsnet import DISTRIBUTION
from upsnet.device import AUTO
from upsnet.engines.folder import ENGINE_FILE, ENGINE_FOLDER, engines_in
from upsnet.engines.kinds import identify, regular_file
from upsnet.engines.manifest import ENGINES, Backend, backend_of
from upsnet.errors import InputError, first_line
from upsnet.files import PathLike
from upsnet.runs import find_run
from upsnet.runtimes.address import parse_address
from upsnet.runtimes.options import RUNTIMES, SERVER, TLS_SCHEME, RuntimeOptions, find_runtime
from upsnet.runtimes.predictor import Predictor
from upsnet.workshop import load_module

FILES = {name: runtime.file for name, runtime in RUNTIMES.items() if runtime.file}
USUAL = ("onnxruntime", "pytorch")  # what opens a folder without an engine: the first of these that it has a file for
MOST_THREADS = 256  # more only wait for each other
MODELS = (
    "a run's or an engine's folder, an .onnx file, a plan of TensorRT, a checkpoint (.safetensors) or grpc://host:port"
)
ON_DISK = "models are read from this machine's disks: copy it here, and give its path"
MODEL_FILES = tuple({Path(file).suffix for file in FILES.values()})
SERVERS = ("grpc", "grpcs", "http", "https")  # the last two are what people write for the first


def open_runtime(options: RuntimeOptions) -> Predictor:
    """What a command line names (see `choose`). Of other runtimes' options, a device and a version are an error,
    and the rest are left alone.

    Raises InputError for an unknown runtime, one that is not installed, and one without what it needs.
    """
    runtime, place = choose(options)
    if options.device is not None and "device" not in RUNTIMES[runtime].takes:
        raise InputError(f"device {options.device}: the runtime {runtime} has its own; leave it out")
    if options.version is not None and "version" not in RUNTIMES[runtime].takes:
        raise InputError(
            f"version {options.version}: a server has versions, the runtime {runtime} has none; give --url"
        )
    return _open(runtime, place, options, asked=options.runtime is not None or options.engine is not None)


def open_source(options: RuntimeOptions) -> Predictor:
    """What `upsnet.load` is given; see there. An option that the runtime does not have is an InputError."""
    runtime, place = find_model(options.run, options.runtime)
    takes = RUNTIMES[runtime].takes
    offered = ("threads", "device", "manifest", "tls", "shared_memory", "version")
    for option in offered:
        if getattr(options, option) is not None and option not in takes:
            known = ", ".join(each for each in offered if each in takes)
            raise InputError(f"{options.run}: {option} is no option of the runtime {runtime}: {known}")
    return _open(runtime, place, options, asked=options.runtime is not None)


def choose(options: RuntimeOptions) -> tuple[str, PathLike]:
    """The runtime, and where its model is: the place given for it, else the run's own file, else `make serve`'s server.

    Without a runtime, the place given tells it, and else the run (see `find_model`).
    """
    runtime, run = options.runtime, options.run
    places = _places(options)
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


def _places(options: RuntimeOptions) -> dict[str, PathLike]:
    """By runtime, what was named for it alone. A place that several have is for the one that is asked for, which then
    says what is wrong with it; else an engine for the one whose it is, any other for the first."""
    places: dict[str, PathLike] = {}
    for option in dict.fromkeys(each.place for each in RUNTIMES.values()):
        if (place := getattr(options, option)) is None:
            continue
        names = [name for name, each in RUNTIMES.items() if each.place == option]
        if RUNTIMES[names[0]].file and os.path.isdir(place):
            raise InputError(
                f"{place}: a folder, and --{option} takes a file; --run takes a run's or an engine's folder"
            )
        if options.runtime in names:
            name = options.runtime
        elif option != "engine":
            name = names[0]
        elif options.runtime is not None:
            continue
        elif (name := _backend(Path(place)) or "") not in names:
            raise InputError(f"{place}: no engine of {', '.join(names)} by its name or its first bytes")
        places[name] = place
    return places


def _backend(file: Path) -> Backend | None:
    """Whose engine a file is: by its name, else by its first bytes."""
    if (named := backend_of(file)) is not None or not file.is_file():
        return named
    try:
        return identify(file).backend
    except InputError:
        return None


def find_model(source: PathLike | None, runtime: str | None = None) -> tuple[str, PathLike]:
    """The runtime that a source is for, and where its model is: a file, or a server's host:port.

    source: a run's or an engine's folder, a run's name (upsnet/runs.py), an .onnx file, a plan, a .safetensors
    checkpoint or grpc://host:port. runtime: the one that is wanted, for which a run's folder may have an engine in its
    folder engine/. Raises InputError for what is none of these, and when the two do not go together.
    """
    if runtime is not None:
        find_runtime(runtime)
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise InputError(f"{source!r} is no model; a model is {MODELS}")
    source = find_run(source)
    text, path = os.fspath(source), Path(source)
    found: dict[str, PathLike] = {}
    if "://" in text:
        if _is_of_model(text):
            raise InputError(f"{text}: {ON_DISK}; a server's address is grpc://host:port")
        scheme = TLS_SCHEME if text.startswith(TLS_SCHEME) else ""
        found = {"triton": scheme + parse_address(text)}
    elif os.path.isdir(path):
        found = {**_in_folder(path, runtime)}
        if not found:
            raise InputError(
                f"{source}: neither a run nor an engine: it has no {' and no '.join(FILES[name] for name in USUAL)}"
            )
    elif not os.path.isfile(path):
        raise InputError(f"{source}: no such file or folder; a model is {MODELS}")
    elif path.suffix == Path(FILES["pytorch"]).suffix:
        found = {"pytorch": path}
    elif (backend := _backend(path)) is not None:
        found = {name: path for name, file in FILES.items() if file == ENGINES[backend]}
    else:
        hint = "; `upsnet import` reads the original UPSNet's checkpoints" if path.suffix in (".pth", ".pt") else ""
        raise InputError(f"{source}: no model by its name; a model is {MODELS}{hint}")
    if runtime is not None and runtime not in found:
        cure = f"; {CURES[runtime]}" if path.is_dir() and runtime in CURES else ""
        raise InputError(f"{source}: holds nothing for the runtime {runtime}, only for {_named(found)}{cure}")
    return (runtime, found[runtime]) if runtime else next(iter(found.items()))


# Of a folder that has nothing for a runtime
CURES = dict.fromkeys(("onnxruntime", "onnxruntime-tensorrt"), "`make onnx` exports it") | {
    name: f"`upsnet engine --backend {name}` builds it" for name, each in RUNTIMES.items() if each.place == "engine"
}


def _is_of_model(text: str) -> bool:
    """Whether it is the URL of a file or a folder, rather than of a server. Of a Path, one slash is left."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    return found is not None and (found[1].lower() not in SERVERS or text.endswith(MODEL_FILES))


def _in_folder(folder: Path, runtime: str | None) -> dict[str, Path]:
    """By runtime, the files of a folder; first what opens it without a runtime, which is all that engine.json is asked
    for. With a runtime, what lies in the engine's folder below it, too: the engines, and what that runtime needs."""
    found = {name: folder / file for name, file in FILES.items() if os.path.isfile(folder / file)}
    if runtime is not None:
        names = [name for name, each in RUNTIMES.items() if each.place == "engine" or (each.gpu and name == runtime)]
        below = {name: folder / ENGINE_FOLDER / FILES[name] for name in names}
        return found | {name: file for name, file in below.items() if os.path.isfile(file)}
    opened = engines_in(folder)[:1]
    if opened and opened[0] not in found:
        raise _not_there(folder, opened[0], found)
    first = [name for name in (*opened, *USUAL) if name in found]
    return {name: found[name] for name in dict.fromkeys([*first, *found])}


def _not_there(folder: Path, chosen: Backend, found: Mapping[str, PathLike]) -> InputError:
    what = "missing"
    if os.path.lexists(folder / FILES[chosen]):
        try:
            regular_file(folder / FILES[chosen])
        except InputError as error:
            what = f"no engine ({error})"
    others = f", or take --runtime {_named(found)}" if found else ""
    return InputError(
        f"{folder}: {ENGINE_FILE} chose {chosen}, and its {FILES[chosen]} is {what}; copy it again, or build the "
        f"engine again with `make engine`{others}"
    )


def _open(name: str, place: PathLike, options: RuntimeOptions, asked: bool) -> Predictor:
    """asked: somebody named the runtime, or the file is for no other."""
    runtime, threads = RUNTIMES[name], options.threads
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
        raise InputError(f"threads {threads!r}: give a number from 1 to {MOST_THREADS}")
    if runtime.file and not os.path.isfile(place):
        cure = ON_DISK if _is_of_model(os.fspath(place)) else f"the runtime {name} needs {runtime.needs}"
        raise InputError(f"{place}: no such file; {cure}")
    options = options._replace(device=AUTO if options.device is None else options.device)
    module, _, predictor = runtime.predictor.partition(":")
    try:
        opened = getattr(load_module(module, f"{runtime.needs}, in the runtime {name},"), predictor)
    except ImportError as error:
        cure = f"pip install '{DISTRIBUTION}[{runtime.extra}]'"
        raise InputError(f"the runtime {name} is not installed ({first_line(error)}): {cure}") from None
    given = {each: value for each in runtime.takes if (value := getattr(options, each)) is not None}
    try:
        return opened(place, **given)
    except InputError as error:
        raise error if asked else _with_others(error, name, Path(options.run or "")) from None


def _with_others(error: InputError, name: str, folder: Path) -> InputError:
    """Of the engine that a folder is opened with: what else the folder has, which nobody is given without a word."""
    found = _in_folder(folder, None) if folder.is_dir() and name not in USUAL else {}
    others = {each: file for each, file in found.items() if each != name}
    if not others:
        return error
    who = f"{ENGINE_FILE} chose {name}" if os.path.isfile(folder / ENGINE_FILE) else f"{name} opens this folder"
    return InputError(f"{error} ({who}; there is a file for --runtime {_named(others)}, too)")


def _named(found: Mapping[str, PathLike]) -> str:
    """The runtimes, of those that open the same file the first."""
    by_file: dict[PathLike, str] = {}
    for name, file in found.items():
        by_file.setdefault(file, name)
    *names, last = by_file.values()
    return f"{', '.join(names)} and {last}" if names else last
