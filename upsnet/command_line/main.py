"""The one command line, `upsnet`: which command lives where. A command's module is loaded when that command is run.

What needs PyTorch or Triton lives in the workshop, the folders beside this package: names of modules here, no imports.
"""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

import upsnet
from upsnet.command_line.command import BAD_INPUT, make_app
from upsnet.errors import InputError
from upsnet.workshop import FOLDERS, import_workshop


class Entry(NamedTuple):
    module: str  # its `main`, a function with typer's annotations, is the command
    summary: str


COMMANDS = {
    "predict": Entry("upsnet.command_line.predict", "Panoptic overlays and COCO panoptic files of photos and videos."),
    "pq": Entry("upsnet.command_line.pq", "PQ of prediction files in the official COCO panoptic format."),
    "shapes": Entry("upsnet.datasets.shapes", "Make the synthetic panoptic data set `shapes`."),
    "data check": Entry("upsnet.datasets.doctor.check", "Look for faults in a data set in COCO panoptic format."),
    "data coco": Entry("upsnet.datasets.coco", "Unpack and check an official COCO download."),
    "data cityscapes": Entry("upsnet.datasets.cityscapes", "Make the panoptic truth of a Cityscapes download."),
    "import": Entry("training.importers.upsnet.command", "A checkpoint of the original UPSNet -> one of this project."),
    "golden": Entry("training.importers.upsnet.golden.command", "Arrays and losses of an imported network."),
    "train": Entry("training.train", "Train a network from a configuration; resumes where it stopped."),
    "init": Entry("training.init", "A checkpoint with random weights, to export and measure a configuration."),
    "export": Entry("export.onnx_export", "Checkpoint -> one ONNX file and its manifest."),
    "engine": Entry("export.engine", "ONNX file -> the engine of this machine."),
    "deploy": Entry("serving.deploy", "Make Triton's model repository of a run."),
    "serve": Entry("serving.serve", "Serve a run with a real Triton server on 127.0.0.1."),
    "eval": Entry("eval.evaluate", "PQ, AP and mIoU of one runtime on a data set."),
    "parity": Entry("eval.parity", "PQ and pixels of several runtimes, compared."),
    "bench": Entry("eval.bench", "Speed ratios between the runtimes."),
}
GROUPS = {"data": "Check and prepare data sets."}
SUMMARY = "Panoptic segmentation from training to production: train, export, serve, and prove that PQ stays the same."


class LazyCommand(TyperCommand):
    """Stands in lists and completions under its summary; becomes the command itself where it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name.split()[-1], help=entry.summary)
        self._full_name, self._entry = name, entry

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            command = typer.main.get_command(make_app(load_main(self._full_name, self._entry.module)))
        except InputError:
            if kwargs.get("resilient_parsing"):  # a shell asks for completions: none, rather than an error
                return super().make_context(*args, **kwargs)
            raise
        return command.make_context(*args, **kwargs)


class LazyGroup(TyperGroup):
    """Commands in the order of the table; an unknown one is bad input, told in one line."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        path = f"{self.name} {cmd_name}" if self.name in GROUPS else cmd_name
        return LazyCommand(path, COMMANDS[path]) if path in COMMANDS else super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        if self.name in GROUPS:
            return [name.split()[1] for name in COMMANDS if name.startswith(f"{self.name} ")]
        return list(dict.fromkeys(name.split()[0] for name in COMMANDS))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in names:
            prefix = f"{self.name} " if self.name in GROUPS else ""
            close = difflib.get_close_matches(args[0], names, 1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(names)}"
            raise InputError(f"no command {prefix + args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


def load_main(name: str, module: str) -> Any:
    """The command's function. InputError, with the cure, where the checkout or a package that it needs is not there."""
    try:
        if module.partition(".")[0] in FOLDERS:
            return import_workshop(module, f"upsnet {name}").main
        return importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise InputError(
            f"upsnet {name} needs the package {missing}: pip install '{upsnet.DISTRIBUTION}[{_extra(module, missing)}]'"
        ) from None


def _extra(module: str, missing: str) -> str:
    """The extra of this distribution that brings a missing package to a command."""
    by_package = {"hotcoco": "metrics", "onnxruntime": "onnxruntime", "tritonclient": "triton"}
    folder = module.partition(".")[0]
    return by_package.get(missing) or {"training": "train", "export": "export"}.get(folder, "dev")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{upsnet.DISTRIBUTION} {upsnet.__version__}")
        raise typer.Exit


def make_root() -> typer.Typer:
    """The whole command line; nothing of it is loaded yet."""
    options: dict[str, Any] = {"cls": LazyGroup, "no_args_is_help": True, "pretty_exceptions_enable": False}
    root = typer.Typer(name="upsnet", help=SUMMARY, **options)

    @root.callback()
    def upsnet_command(
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    upsnet_command.__doc__ = SUMMARY
    for name, summary in GROUPS.items():
        group = typer.Typer(name=name, help=summary, **options)
        group.callback()(lambda: None)
        root.add_typer(group, name=name)
    return root


def main() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text of the terminal's encoding
    try:
        make_root()(prog_name="upsnet")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
