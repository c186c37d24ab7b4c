"""Two networks, photo by photo: how far apart they are at every place that both show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from eval.comparing.boundaries import (
    BOX_DELTAS,
    BOX_LOGITS,
    DETECTIONS,
    MASKS,
    PANOPTIC,
    PROPOSALS,
    SCORES,
    Instances,
    Outputs,
    order,
)
from eval.comparing.errors import MOST_DB, Errors, from_centre, match
from eval.comparing.limits import LIMITS, Limits, lesser
from eval.comparing.networks import Network
from eval.comparing.report import WORST, Comparison, Place, Side, module_of
from upsnet.datasets.places import File
from upsnet.errors import InputError
from upsnet.geometry import NetworkImage, collate, to_network
from upsnet.machine import machine_facts, package_versions
from upsnet.parity.pixels import identical_pixels
from upsnet.photos import read_photo
from upsnet.result import PanopticResult, decode


@dataclass
class Tally:
    """One place over all photos so far."""

    errors: Errors = field(default_factory=Errors)
    matched: int | None = None
    of: int = 0
    same_pixels: int = 0
    pixels: int = 0
    broken: str = ""  # what is wrong with a panoptic map


def compare(a: Network, b: Network, photos: Iterable[File]) -> Comparison:
    """Reads one photo after the other and keeps sums alone. InputError: a photo that cannot be read, two networks that
    are not for the same photos or categories."""
    check_kin(a, b)
    tallies: dict[str, Tally] = {}
    left_out: dict[str, str] = {}
    names = []
    for path in photos:
        net = to_network(read_photo(path), a.manifest.resize)
        batch = collate([net])
        mine, others = a.run(batch), b.run(batch)
        _look(tallies, left_out, mine, others)
        _look_at_answers(tallies.setdefault(PANOPTIC, Tally()), mine, others, net)
        names.append(str(path))
    if not names:
        raise InputError("no photo to compare on; give --photo")
    return _summarize(a, b, names, tallies, left_out)


def check_kin(a: Network, b: Network) -> None:
    """InputError for networks that are not shown the same, or do not speak of the same categories."""
    if a.manifest.resize != b.manifest.resize:
        raise InputError(
            f"{a.title} resizes photos to {a.manifest.resize}, {b.title} to {b.manifest.resize}: not the same network"
        )
    if a.manifest.categories != b.manifest.categories:
        raise InputError(f"{a.title} and {b.title} have not the same categories: not the same network")


def _look_at_answers(tally: Tally, a: Outputs, b: Outputs, net: NetworkImage) -> None:
    """The panoptic maps at the photo's size. A map that cannot be one has no identical pixel."""
    tally.pixels += net.original[0] * net.original[1]
    try:
        tally.same_pixels += int(identical_pixels(*(_result(each, net) for each in (a, b))).sum())
    except InputError as error:
        tally.broken = str(error)


def _result(outputs: Outputs, net: NetworkImage) -> PanopticResult:
    return decode(outputs.panoptic[0], outputs.segments[0], int(outputs.segment_count[0]), net)


def _look(tallies: dict[str, Tally], left_out: dict[str, str], a: Outputs, b: Outputs) -> None:
    """Adds one photo."""
    for name in a.arrays.keys() | b.arrays.keys():
        if name in a.arrays and name in b.arrays:
            tallies.setdefault(name, Tally()).errors.add(a.arrays[name], b.arrays[name])
        else:
            left_out[name] = "A" if name in a.arrays else "B"
    heads = {BOX_LOGITS: "logits", BOX_DELTAS: "deltas"}
    _look_at_instances(tallies, left_out, PROPOSALS, a.proposals, b.proposals, heads)
    heads = {SCORES: "scores", MASKS: "masks"}
    _look_at_instances(tallies, left_out, DETECTIONS, a.detections, b.detections, heads)


def _look_at_instances(
    tallies: dict[str, Tally],
    left_out: dict[str, str],
    name: str,
    a: Instances | None,
    b: Instances | None,
    heads: dict[str, str],
) -> None:
    """Those that both have, their boxes, and what the heads say of them."""
    if a is None or b is None:
        if a is not None or b is not None:
            left_out[name] = "A" if b is None else "B"
        return
    rows, columns = match(a.boxes, b.boxes, a.labels, b.labels)
    boxes = from_centre(a.boxes[rows], b.boxes[columns])
    pairs = {name: boxes}
    for head, part in heads.items():
        mine, others = getattr(a, part), getattr(b, part)
        if mine is not None and others is not None:
            pairs[head] = mine[rows], others[columns]
    for place, arrays in pairs.items():
        tally = tallies.setdefault(place, Tally(matched=0))
        tally.errors.add(*(np.asarray(each) for each in arrays))
        tally.matched = (tally.matched or 0) + len(rows)
        tally.of += max(len(a.boxes), len(b.boxes))


def _summarize(
    a: Network, b: Network, photos: list[str], tallies: dict[str, Tally], left_out: dict[str, str]
) -> Comparison:
    precision = lesser(a.types, b.types)
    limits = LIMITS[precision]
    places = [_place(name, tallies[name], limits) for name in order(set(tallies))]
    parted = [place.name for place in places if place.problem]
    ranked = sorted((place for place in places if place.differs), key=lambda place: place.snr_db)
    sides = [Side(title=x.title, precision=x.manifest.precision, onnx_sha256=x.manifest.onnx_sha256) for x in (a, b)]
    return Comparison(
        machine=machine_facts(),
        versions=package_versions(),
        a=sides[0],
        b=sides[1],
        photos=photos,
        precision=precision,
        limits=limits,
        places=places,
        first=parted[0] if parted else None,
        worst=[place.name for place in ranked[:WORST]],
        left_out={name: left_out[name] for name in order(set(left_out))},
        notes=[note for note in (a.note, b.note) if note],
        equal=not parted,
    )


def _place(name: str, tally: Tally, limits: Limits) -> Place:
    errors = tally.errors
    share = [count / max(1, errors.values) for count in (errors.not_finite_a, errors.not_finite_b)]
    identical = tally.same_pixels / tally.pixels if tally.pixels else None
    return Place(
        name=name,
        module=module_of(name),
        values=errors.values,
        max_error=errors.max_error,
        mean_error=errors.mean_error,
        cosine=errors.cosine,
        snr_db=-MOST_DB if errors.shapes else errors.snr_db,
        not_finite=(share[0], share[1]),
        shapes=errors.shapes,
        matched=tally.matched,
        of=None if tally.matched is None else tally.of,
        identical=identical,
        problem=_problem(tally, identical, limits),
    )


def _problem(tally: Tally, identical: float | None, limits: Limits) -> str | None:
    """Why the two part here; None where they do not."""
    errors = tally.errors
    if tally.broken:
        return tally.broken
    if identical is not None:
        return None if identical >= limits.identical else f"{100 * identical:.2f} % of the pixels are identical"
    if errors.shapes:
        return f"shape {errors.shapes[0]} and {errors.shapes[1]}"
    if errors.unlike:
        return f"{errors.unlike} of {errors.values} values are infinite or no number on one side alone"
    if errors.snr_db < limits.snr_db:
        return f"SNR {errors.snr_db:.1f} dB, under {limits.snr_db:g}"
    if tally.matched is not None and tally.matched < limits.matched * tally.of:
        return f"only {tally.matched} of {tally.of} instances are in both"
    return None
