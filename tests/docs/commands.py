"""What a text tells people to type, held against the Makefile, the command line, the scripts and the extras."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import typer

from training.config import load_config
from upsnet.command_line.command import make_app
from upsnet.command_line.main import COMMANDS, GROUPS, make_root
from upsnet.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = re.compile(r"(?:\S*/)?(make|upsnet|pip|python|torchrun)[\d.]*")  # .venv/bin/python3 too
OURS = ("upsnet", "plugins_cuda", "training", "export", "serving", "eval")


def faults(command: str) -> list[str]:
    """What is wrong with one shell line, a sentence each; [] when all of it exists or is not this project's."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return [f"not a shell line ({error})"] if PROGRAMS.fullmatch(command.split()[0]) else []
    while words and re.fullmatch(r"\w+=.*", words[0]):  # variables of the environment
        words = words[1:]
    words = [word.strip("[]") if word.startswith(("[-", "-")) else word for word in words]  # a synopsis' brackets
    match = PROGRAMS.fullmatch(words[0]) if words else None
    if match is None:
        return []
    check = {"make": _make, "upsnet": _upsnet, "pip": _pip, "python": _python, "torchrun": _python}[match[1]]
    return list(check(words[1:]))


def _make(words: Sequence[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    targets = [word for word in words if not word.startswith("-") and "=" not in word]
    named = next((word.partition("=")[2] for word in words if word.startswith("NAME=")), "runtimes")
    targets = [f"bench-{named}" if target == "bench" else target for target in targets]
    for target in targets:
        if not re.search(rf"^{re.escape(target)}:", makefile, re.M):
            yield f"the Makefile has no target {target}"
    for name, value in (word.split("=", 1) for word in words if re.fullmatch(r"\w+=.*", word)):
        if not re.search(rf"^(?:export )?{name}\s*\??=|\$\({name}\)", makefile, re.M):
            yield f"the Makefile has no variable {name}"
        elif name == "ARGS":
            for target in targets:
                yield from _arguments(makefile, target, value)


def _arguments(makefile: str, target: str, value: str) -> Iterator[str]:
    """ARGS goes to the program in the target's recipe."""
    recipe = re.search(rf"^{re.escape(target)}:[^=\n]*\n((?:\t.*\n)+)", makefile, re.M)
    for line in recipe[1].replace("\\\n", "").splitlines() if recipe else ():
        if "$(ARGS)" in line and (program := re.search(r"\$\(UPSNET\) \S+|\S+\.py\b|-m \S+", line)):
            name = program[0].replace("$(UPSNET)", "upsnet")
            yield from faults(f"{name if name.startswith('upsnet') else 'python ' + name} {value}")


def _upsnet(words: Sequence[str]) -> Iterator[str]:
    if not words or words[0].startswith("-"):
        yield from _unknown(words, _typer_options(make_root()), "upsnet")
        return
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is not None:
        yield from _unknown(words, _options(COMMANDS[name].module), f"upsnet {name}")
        yield from _overrides(words)
    elif words[0] not in GROUPS and words[0] != "COMMAND":
        yield f"no command upsnet {words[0]}"
    elif len(words) > 1 and words[0] in GROUPS and not words[1].startswith(("-", "...")):
        yield f"no command upsnet {words[0]} {words[1]}"


def _python(words: Sequence[str]) -> Iterator[str]:
    """python FILE.py ..., python -m MODULE ..., and torchrun's options before the same."""
    place = next((place for place, word in enumerate(words) if word == "-m" or word.endswith(".py")), None)
    if place is None:
        return
    script = None if words[place] == "-m" else words[place]
    rest = words[place + (2 if script is None else 1) :]
    module = words[place + 1] if script is None else ".".join(Path(script).with_suffix("").parts)
    if script is not None and not (ROOT / script).is_file():
        yield f"there is no {script}"
    elif module == "upsnet":
        yield from _upsnet(rest)
    elif module == "pip":
        yield from _pip(rest)
    elif module.split(".")[0] not in OURS:
        return
    elif importlib.util.find_spec(module) is None:
        yield f"there is no module {module}"
    elif script is not None and "__main__" not in (ROOT / script).read_text():
        yield f"{script} does nothing as a script"
    else:
        yield from _unknown(rest, _options(module), f"python {script or f'-m {module}'}")
        yield from _overrides(rest)


def _pip(words: Sequence[str]) -> Iterator[str]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    for name, extras in re.findall(r"(?:^| )([\w./-]+)\[([\w,-]+)", " ".join(words)):
        for extra in extras.split(",") if name in (project["name"], ".") else ():
            if extra not in project["optional-dependencies"]:
                yield f"there is no extra {extra}"


def _unknown(words: Sequence[str], options: set[str], where: str) -> Iterator[str]:
    for word in words:
        option = word.split("=")[0]
        if word.startswith("--") and word != "--" and option not in options:
            yield f"{where} has no option {option}"


def _overrides(words: Sequence[str]) -> Iterator[str]:
    """Settings of --set KEY=VALUE, read into the configuration that the line names."""
    overrides = [after for word, after in pairwise(words) if word == "--set" and after != "KEY=VALUE"]
    named = next((after for word, after in pairwise(words) if word == "--config" and (ROOT / after).is_file()), None)
    try:
        load_config(ROOT / (named or "training/configs/coco_r50.yaml"), tuple(overrides))
    except InputError as error:
        yield str(error)


@cache
def _options(module: str) -> set[str]:
    """The options of a module's command: typer's own list, or what its text gives to argparse."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    if Path(spec.origin).name == "__init__.py":
        return _options(f"{module}.__main__")
    if "argparse" in (text := Path(spec.origin).read_text()):
        return {"--help", *re.findall(r"\"(--[\w-]+)\"", text)}
    main = getattr(importlib.import_module(module), "main", None)
    return set() if main is None else _typer_options(make_app(main))


def _typer_options(app: typer.Typer) -> set[str]:
    return {"--help"} | {option for each in typer.main.get_command(app).params for option in each.opts}
