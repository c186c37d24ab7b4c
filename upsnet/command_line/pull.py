"""`upsnet pull`: a network that others have trained, fetched and made into a run, from its file to an engine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer
from rich.markup import escape

import upsnet
from upsnet.errors import InputError
from upsnet.runs import run_folder
from upsnet.tables import make_table, print_tables
from upsnet.workshop import load_module
from upsnet.zoo.networks import NETWORKS, Network, find_network
from upsnet.zoo.weights import CACHE_VARIABLE, Weights, cache_folder, cached, checked, place_of

Step = Literal["download", "import", "export", "engine"]


def main(
    name: Annotated[str | None, typer.Argument(help="Which network; without it, a table of all.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: runs/NAME).")] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", "--yes", help="Agree to the weights' licence; else you are asked.")
    ] = False,
    until: Annotated[Step, typer.Option(help="The last step; those before it are done first.")] = "engine",
    file: Annotated[Path | None, typer.Option(help="The network's file, where you have fetched it yourself.")] = None,
    url: Annotated[str | None, typer.Option(help="Fetch it from this address, as of a mirror of your own.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help=f"Folder for the files (default: ${CACHE_VARIABLE}, else ~/.cache/upsnet-trt/weights)."),
    ] = None,
) -> None:
    """Fetch a published network and make a run of it, which `upsnet predict photo.jpg --out out --run NAME` takes.

    Steps that are done are not done again, and a download that broke goes on where it broke.
    """
    if name is None:
        show_table()
        return
    network = find_network(name)
    workshop = None if until == "download" else _workshop("export.published")  # missed before the download, not after
    print(f"{name}: {network.title}, PQ {network.pq}, as published by {network.page}")
    print(_licence(network))
    weights = obtain(name, network, accept_license, file, url, cache)
    known = f"its MD5 begins with {network.md5}, as published" if network.md5 else "no checksum of it is published"
    print(f"{weights.file}: {known}; SHA-256 {weights.sums.sha256}")
    if workshop is None:
        return
    folder = out or run_folder(name)
    workshop.make_run(folder, name, network, weights, until)
    if until == "engine":
        print(f"now: upsnet predict photo.jpg --out out --run {name if out is None else shlex.quote(str(out))}")


def show_table() -> None:
    table = make_table("", "name", "network", "PQ, as published", "MB, about", "licence", "source", left=3)
    for name, each in NETWORKS.items():
        size = "by hand" if each.megabytes is None else str(each.megabytes)
        table.add_row(*map(escape, (name, each.title, each.pq, size, each.licence.name, each.source)))
    table.columns[0].no_wrap = True  # to be copied
    print_tables(table)
    print("`upsnet pull NAME` fetches one, shows its licence first, and makes runs/NAME of it.")


def obtain(
    name: str, network: Network, agreed: bool, file: Path | None, url: str | None, cache: Path | None
) -> Weights:
    """The network's file: the one that is given, the one in the cache, or one that is fetched. Checked."""
    if file is not None:
        if url is not None or cache is not None:
            raise InputError("--file is a file that is here: give neither --url nor --cache with it")
        _agree(network, agreed)
        return Weights(file, checked(name, network, file))
    downloads = _workshop("upsnet.zoo.download")
    folder = cache_folder(cache)

    def fetch(place: Path) -> None:
        address = url or network.address
        if address is None:
            raise InputError(
                f"{name}: nothing is fetched by itself under {network.licence.name}: get {network.file} as "
                f"{network.page} says, and put it at {place}, or give it with --file FILE"
            )
        size = "" if network.megabytes is None else f", about {network.megabytes} MB"
        print(f"from {address}{size}, to {place}")
        _agree(network, agreed)
        try:
            downloads.download(address, place)
        except downloads.DownloadError as error:
            raise InputError(
                f"{error}; fetch {network.address or network.page} by hand instead, with a browser or on another "
                f"machine, and put it at {place}, or give it with --file FILE"
            ) from None
        except KeyboardInterrupt:
            print(f"what has come is kept beside {place}; the same command goes on from there", file=sys.stderr)
            raise

    place = place_of(name, network, folder)
    if place.is_file():  # perhaps in a folder that only others write to
        return cached(name, network, folder, fetch)
    with downloads.alone(place.parent / "lock"):
        return cached(name, network, folder, fetch)


def _licence(network: Network) -> str:
    licence = network.licence
    return f"licence of the weights: {licence.name}, {licence.address}: {licence.terms}. What counts is its text."


def _agree(network: Network, agreed: bool) -> None:
    """InputError where nobody agrees."""
    if agreed:
        return
    refusal = f"nothing is done before you agree to the licence {network.licence.name} ({network.licence.address})"
    if not sys.stdin.isatty():
        raise InputError(f"{refusal}: --accept-license does")
    try:
        answer = input("Do you agree? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError(refusal)


def _workshop(module: str) -> ModuleType:
    """InputError, with the cure, without the checkout, or without a package that the module needs."""
    try:
        return load_module(module, "upsnet pull, but for --until download,")
    except ModuleNotFoundError as error:
        extra = "pull" if module.startswith("upsnet.") else "export"
        raise InputError(
            f"upsnet pull needs the package {error.name}: pip install '{upsnet.DISTRIBUTION}[{extra}]'"
        ) from None
