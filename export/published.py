"""A published network's file -> a run: checkpoint, ONNX file, engine, and whose it is, as `upsnet pull` makes it.

A step is done again only where what it made is gone, or older than what it is made from.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar, Literal

from export import engine as engine_command
from export import onnx_export
from export.building import Engine
from training.config import dump_config, load_config
from training.importers import command as import_command
from upsnet.contract import manifest_path
from upsnet.datasets.cityscapes import categories as cityscapes_categories
from upsnet.datasets.coco_table import coco_categories
from upsnet.errors import InputError
from upsnet.files import sha256, write_json, write_text
from upsnet.report import Report
from upsnet.workshop import ROOT
from upsnet.zoo.download import alone
from upsnet.zoo.networks import Network
from upsnet.zoo.weights import Weights

CONFIGS = ROOT / "training/configs"
NOTE = """{title}: last.safetensors, and what is made of it (model.onnx, engine/), hold the weights
of a file whose SHA-256 is {sha256}.
It was taken for {file} of {source}, {page}:
{known}.

The licence of those weights: {licence}, {licence_address}
In short, {terms}.

What was changed: `upsnet import` gave the layers, and the rows of their classes, this project's names and order;
`upsnet export` wrote the network as an ONNX file, and `upsnet engine` engines of that. No weight was trained further.
"""


class Source(Report):
    """source.json: whose weights a run has."""

    cure: ClassVar[str] = "; pull into another folder with --out"

    name: str  # in the table of `upsnet pull`
    page: str
    address: str | None  # where they are published; None: behind the page
    file: str
    sha256: str
    licence: str
    licence_address: str


def make_run(
    folder: Path, name: str, network: Network, weights: Weights, until: Literal["import", "export", "engine"] = "engine"
) -> None:
    """Make in `folder`: source.json, LICENSE, config.yaml, last.safetensors, model.onnx with its manifest, engine/.

    InputError for a folder with another run, and for whatever the steps refuse; what is there by then stays, and the
    next call goes on from it.
    """
    with alone(folder / ".pull.lock"):
        checkpoint = folder / "last.safetensors"
        _import(folder, checkpoint, name, network, weights)
        if until != "import":
            _export(checkpoint, folder / "model.onnx")
        if until == "engine":
            _build(folder / "model.onnx", folder / "engine")


def _import(folder: Path, checkpoint: Path, name: str, network: Network, weights: Weights) -> None:
    licence = network.licence
    source = Source(
        name=name,
        page=network.page,
        address=network.address,
        file=network.file,
        sha256=weights.sums.sha256,
        licence=licence.name,
        licence_address=licence.address,
    )
    if checkpoint.is_file():
        if not (folder / "source.json").is_file():
            raise InputError(f"{folder}: a run that was not pulled is there; give another folder with --out")
        there = Source.load(folder / "source.json")
        if there.name != name:
            raise InputError(f"{folder}: {there.name} is there; give another folder with --out")
        if there.sha256 == source.sha256:
            print(f"{checkpoint}: is there")
            return
    with tempfile.TemporaryDirectory(prefix="upsnet-") as temporary:
        table = Path(temporary) / "categories.json"
        write_json(table, coco_categories().to_coco() if network.categories == "coco" else cityscapes_categories(True))
        import_command.main(
            checkpoint=weights.file,
            config=CONFIGS / network.config,
            categories=table,
            out=checkpoint,
            set_=list(network.settings),
        )
    try:
        _describe(folder, source, network)
    except BaseException:  # weights of which nothing says whose they are would be taken for another's run
        checkpoint.unlink()
        raise


def _describe(folder: Path, source: Source, network: Network) -> None:
    """What lies beside the weights."""
    facts = {"title": network.title, "source": network.source, "terms": network.licence.terms}
    facts["known"] = (
        f"its MD5 begins with {network.md5}, as published" if network.md5 else "no checksum of that is published"
    )
    write_text(folder / "config.yaml", dump_config(load_config(CONFIGS / network.config, network.settings)))
    write_text(folder / "LICENSE", NOTE.format_map(source.model_dump() | facts))
    source.save(folder / "source.json")


def _export(checkpoint: Path, model: Path) -> None:
    if model.is_file() and manifest_path(model).is_file() and _time(model) >= _time(checkpoint):
        print(f"{model}: is there")
        return
    print(f"exporting {model} ...", flush=True)
    onnx_export.main(checkpoint=checkpoint, out=model)


def _build(model: Path, folder: Path) -> None:
    report = folder / "engine.json"
    if report.is_file() and Engine.load(report).model_sha256 == sha256(model):
        print(f"{folder}: is there")
        return
    print(f"building {folder} ...", flush=True)
    engine_command.main(model=model, out=folder)


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns
