"""The one command line, `upsnet`: which command lives where. A command's module is loaded when that command is run.

What needs PyTorch or Triton lives in the workshop, the folders beside this package: names of modules here, no imports.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

import upsnet
from upsnet.command_line.command import execute, make_app, refusing
from upsnet.errors import InputError
from upsnet.workshop import load_module


class Entry(NamedTuple):
    module: str  # its `main`, a function with typer's annotations, is the command
    summary: str


COMMANDS = {
    "predict": Entry("upsnet.command_line.predict", "Panoptic overlays and COCO panoptic files of photos and videos."),
    "pq": Entry("upsnet.command_line.pq", "PQ of prediction files in the official COCO panoptic format."),
    "doctor": Entry("upsnet.command_line.doctor", "Which kernels this machine runs with, and why."),
    "shapes": Entry("upsnet.datasets.shapes", "Make the synthetic panoptic data set `shapes`."),
    "data check": Entry("upsnet.datasets.doctor.check", "Look for faults in a data set in COCO panoptic format."),
    "data coco": Entry("upsnet.datasets.coco", "Unpack and check an official COCO download."),
    "data cityscapes": Entry("upsnet.datasets.cityscapes", "Make the panoptic truth of a Cityscapes download."),
    "data from-instances": Entry("upsnet.datasets.conversion.instances", "COCO instances JSON -> COCO panoptic."),
    "data from-masks": Entry("upsnet.datasets.conversion.masks", "Semantic (and instance) PNGs -> COCO panoptic."),
    "data from-yolo": Entry("upsnet.datasets.conversion.yolo", "YOLO segmentation text files -> COCO panoptic."),
    "data from-labelme": Entry("upsnet.datasets.conversion.labelme", "Labelme JSONs -> COCO panoptic."),
    "data from-cvat": Entry("upsnet.datasets.conversion.cvat", "CVAT's XML -> COCO panoptic."),
    "data from-supervisely": Entry("upsnet.datasets.conversion.supervisely", "A Supervisely project -> COCO panoptic."),
    "data split": Entry("upsnet.datasets.splitting.command", "Training and validation images of one data set."),
    "data shards": Entry("upsnet.datasets.shards.command", "A data set in a few tars: many machines, and buckets."),
    "data show": Entry("upsnet.datasets.page.command", "A page of photos with their segments, counts and findings."),
    "import": Entry("training.importers.command", "The original UPSNet's weights, or detectron2's -> a checkpoint."),
    "pull": Entry("upsnet.command_line.pull", "Fetch a published network, and make a run of it."),
    "golden": Entry("training.importers.golden", "Arrays and losses of an imported network."),
    "train": Entry("training.train", "Train a network from a configuration; resumes where it stopped."),
    "runs compare": Entry("upsnet.history.command", "Training runs side by side: settings, figures, curves."),
    "train plan": Entry("training.duration", "How long a schedule takes on so many GPUs, from a measured rate."),
    "init": Entry("training.init", "A checkpoint with random weights, to export and measure a configuration."),
    "export": Entry("export.onnx_export", "Checkpoint -> one ONNX file and its manifest."),
    "engine": Entry("export.engine", "ONNX file -> the engine of this machine."),
    "engine compare": Entry("eval.comparing.command", "Two networks, module by module: where they part first."),
    "engine explain": Entry(
        "upsnet.command_line.explain", "What an engine is, where it runs, and why it does not load."
    ),
    "engine profile": Entry("eval.profiling.command", "Where the time of a model goes: modules, operators, roofline."),
    "precision-search": Entry("eval.precision_search.command", "Which modules may have which types, by PQ: a recipe."),
    "deploy": Entry("serving.deploy", "Make Triton's model repository of a run."),
    "deploy stage": Entry("serving.rollouts.commands.stage", "Another model beside the one in service."),
    "deploy promote": Entry("serving.rollouts.commands.promote", "Let it serve, if it is as good as the one before."),
    "deploy rollback": Entry("serving.rollouts.commands.rollback", "Let the version before serve again."),
    "deploy status": Entry("serving.rollouts.commands.status", "Which version serves, and which may follow."),
    "deploy history": Entry("serving.rollouts.commands.history", "Every step that was made, by whom, and why."),
    "deploy discard": Entry("serving.rollouts.commands.discard", "Remove the model that was staged."),
    "serve": Entry("serving.serve", "Serve a run with a real Triton server on 127.0.0.1."),
    "viewer": Entry("upsnet.viewer.command", "A page in the browser: what models say about your photos."),
    "load-test": Entry("serving.load_test.command", "Load a server with real photos: latency, throughput, refusals."),
    "capacity": Entry("serving.capacity.command", "How many replicas (GPUs) a load needs, from a load test of one."),
    "eval": Entry("eval.evaluate", "PQ, AP and mIoU of one runtime on a data set."),
    "parity": Entry("eval.parity", "PQ and pixels of several runtimes, compared."),
    "bench": Entry("eval.bench", "Speed ratios between the runtimes."),
    "bench-kernels": Entry("eval.bench_kernels", "Models with the library of operators and from function bodies."),
    "bench-bulk": Entry("eval.bench_bulk", "Photos of a list: the plain command against Ray, with the same cores."),
    "bench-pq": Entry("eval.bench_pq", "Speed of PQ, against panopticapi and hotcoco."),
    "ablation": Entry("eval.ablation.command", "What each part of the network is worth."),
    "overview": Entry("eval.overview", "The README's picture, of a run."),
}
GROUPS = {"data": "Check, convert, split and show data sets.", "runs": "Training runs side by side."}
SUMMARY = "Panoptic segmentation from training to production: train, export, serve, and prove that PQ stays the same."


class LazyGroup(TyperGroup):
    """Lists its commands by their summaries; a command's module is loaded when that command is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # of typer's own copy of click
        prefix = f"{self.name} " if self.name in GROUPS else ""
        beside = [each for each in self.commands if each.startswith(f"{args[0]} ")]
        if " ".join(args[:2]) in beside:  # a command of two words beside the command of its first
            args = [" ".join(args[:2]), *args[2:]]
        elif beside and not ctx.resilient_parsing and len(args) > 1 and not args[1].startswith("-"):
            raise InputError(f"no command {' '.join(args[:2])!r}; there are {', '.join([args[0], *beside])}")
        if not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in self.commands:
            close = difflib.get_close_matches(args[0], self.commands, 1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(self.commands)}"
            raise InputError(f"no command {prefix + args[0]!r}; {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        if entry := COMMANDS.get(f"{prefix}{name}"):
            try:
                command = typer.main.get_command(make_app(load_main(f"{prefix}{name}", entry.module)))
                if beside and name not in beside:
                    command.epilog = f"Beside it: {', '.join(f'`upsnet {each}`' for each in beside)}."
            except InputError:
                if not ctx.resilient_parsing:  # a shell asks for completions: none, rather than an error
                    raise
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        with refusing():
            return super().invoke(ctx)


def load_main(name: str, module: str) -> Callable[..., None]:
    """The command's function. InputError, with the cure, where the checkout or a package that it needs is not there."""
    try:
        return load_module(module, f"upsnet {name}").main
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise InputError(
            f"upsnet {name} needs the package {missing}: pip install '{upsnet.DISTRIBUTION}[{_extra(module, missing)}]'"
        ) from None


def _extra(module: str, missing: str) -> str:
    """The extra of this distribution that brings a missing package to a command."""
    by_package = {
        "hotcoco": "metrics",
        "jinja2": "data",
        "yaml": "data",
        "onnxruntime": "onnxruntime",
        "tritonclient": "triton",
        "starlette": "viewer",
        "uvicorn": "viewer",
        "fsspec": "remote",
        "pyarrow": "parquet",
        "ray": "ray",
    }
    folder = module.partition(".")[0]
    return by_package.get(missing) or {"training": "train", "export": "export"}.get(folder, "dev")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{upsnet.DISTRIBUTION} {upsnet.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def make_root() -> typer.Typer:
    """The whole command line; nothing of it is loaded yet."""
    options: dict[str, Any] = {"cls": LazyGroup, "no_args_is_help": True, "pretty_exceptions_enable": False}
    groups = {"": typer.Typer(help=SUMMARY, **options)}
    groups[""].callback()(_root)
    for name, summary in GROUPS.items():
        groups[name] = typer.Typer(**options)
        groups[name].callback()(lambda: None)
        groups[""].add_typer(groups[name], name=name, help=summary)
    for path, entry in COMMANDS.items():
        group, _, name = path.rpartition(" ")
        if group not in groups:
            group, name = "", path
        groups[group].command(name, help=entry.summary)(lambda: None)
    return groups[""]


def main() -> None:
    """The console script."""
    execute(make_root(), prog_name="upsnet")
