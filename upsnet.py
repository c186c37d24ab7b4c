"""The one command line, `upsnet`. It stands above the folders, since it knows them all; each command loads its own."""

from __future__ import annotations

import importlib
import sys

from panoptic.cli import BAD_INPUT, run

COMMANDS = {
    "shapes": ("training.data.shapes", "Make the synthetic panoptic data set `shapes`."),
    "data check": ("training.data.check", "Look for faults in a data set in COCO panoptic format."),
    "data coco": ("training.data.coco", "Unpack and check an official COCO download."),
    "data cityscapes": ("training.data.cityscapes", "Make the panoptic ground truth of a Cityscapes download."),
    "import": ("training.import_.command", "A checkpoint of the original UPSNet -> one of this project."),
    "train": ("training.train", "Train a network from a configuration; resumes where it stopped."),
    "init": ("training.init", "A checkpoint with random weights, to export and measure a configuration."),
    "export": ("export.onnx_export", "Checkpoint -> one ONNX file and its manifest."),
    "engine": ("export.engine", "ONNX file -> the engine of this machine."),
    "serve": ("serving.serve", "Serve a run with a real Triton server on 127.0.0.1."),
    "predict": ("eval.predict", "Panoptic overlays and COCO panoptic files of your own photos."),
    "eval": ("eval.evaluate", "PQ, AP and mIoU of one runtime on a data set."),
    "parity": ("eval.parity", "PQ and pixels of several runtimes, compared."),
    "bench": ("eval.bench", "Speed ratios between the runtimes."),
}


SUMMARY = "Panoptic segmentation from training to production: train, export, serve, and prove that PQ stays the same."


def usage(group: str = "") -> str:
    """The overview, of all commands or of those that begin with `group`; `upsnet COMMAND --help` tells the rest.

    No command is imported for it.
    """
    chosen = {name: text for name, (_, text) in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, chosen))
    rows = [f"  {name:<{width}}  {text}" for name, text in chosen.items()]
    return "\n".join(["Usage: upsnet COMMAND [OPTIONS]", "", SUMMARY, "", "Commands (each has --help):", *rows])


def main() -> None:
    """Runs the `main` of the command's module, a function with typer's annotations. Names are one word or two."""
    arguments = sys.argv[1:]
    group = f"{arguments[0]} " if arguments else ""
    words = 2 if group and any(name.startswith(group) for name in COMMANDS) else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if len(arguments) < words or arguments[words - 1] in ("-h", "--help"):
        print(usage(group if words == 2 else ""))
        sys.exit(0 if len(arguments) >= words else BAD_INPUT)
    if name not in COMMANDS:
        print(f"error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    run(importlib.import_module(COMMANDS[name][0]).main, rest, f"upsnet {name}")


if __name__ == "__main__":
    main()
