"""May a candidate take the place of the model that serves? Judged by photos, and by nothing but two `Predictor`s."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from upsnet.categories import differences
from upsnet.errors import InputError
from upsnet.figures import points, share
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest
from upsnet.metrics.pq import GROUPS
from upsnet.parity.deadline import InTime
from upsnet.parity.figures import ClassFigures, ColumnFigures, class_figures, column_figures
from upsnet.parity.lockstep import Comparison, PredictionFailed, run_lockstep
from upsnet.parity.photos import Photos
from upsnet.runtimes.predictor import Predictor

CANDIDATE = "the candidate"
AGREE = 0.98  # of the pixels, where nothing else can decide: what eight bits keep to (docs/precision.md)
NAMED = 5  # classes and photos, in a reason
LISTED = 20  # in a verdict


class GateLimits(BaseModel):
    """What a candidate must keep to. Shares are fractions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_pq_drop: float = Field(0.005, ge=0, le=1)  # of PQ for all, things and stuff alike; 0.005 is half a point
    min_pq: float = Field(0.0, ge=0, le=1)  # of all classes
    min_identical: float | None = Field(None, ge=0, le=1)  # share of the pixels; None: AGREE where there is no truth
    other_size: bool = False  # another size of the network's images, and smaller batches, are no reason
    seconds: float = Field(60.0, gt=0)  # for an answer


class Photo(BaseModel):
    """How one photo came out. pq: of the reference and the candidate, None without truth, or without a segment."""

    name: str
    identical: float  # share of the pixels
    reference_pq: float | None
    candidate_pq: float | None


class PQ(BaseModel):
    """Of one group of classes; None where no segment of it occurs."""

    reference: float | None
    candidate: float | None
    classes: int  # that occur, in the reference's count


class Verdict(BaseModel):
    """What the gate says, and why."""

    passed: bool
    reasons: list[str]  # why not; each names what differs
    compared: str  # what was compared on what, in words
    limits: GateLimits
    images: int  # that were compared; 0 where the models themselves are too different
    pq: dict[str, PQ] = {}  # by group: All, Things, Stuff; empty without truth
    identical: float | None = None  # share of the pixels of all photos
    needed_identical: float | None = None  # that counts; None where PQ decides
    classes: list[ClassFigures] = []  # those that differ, the most first
    photos: list[Photo] = []  # those that differ, the most first
    milliseconds: dict[str, float] = {}  # of a call for one photo, by predictor: median
    warnings: list[str] = []  # about the truth


def judge(
    candidate: Predictor,
    reference: Predictor,
    photos: Photos,
    limits: GateLimits = GateLimits(),  # noqa: B008 - immutable
    *,
    reference_title: str = "the version in service",
) -> Verdict:
    """Holds a candidate against the reference on photos, one by one, with a progress bar.

    With truth PQ decides: it may not fall by more than the limit, which an improvement always keeps to. Identical
    pixels are told as well, and decide where they are asked for, and on photos without truth. Another class table,
    another size of the network's images, and smaller batches than callers may send are reasons before any photo is
    shown; so is an answer that is none, or that does not come in time, with the photo's number.
    Neither predictor is closed. Raises InputError where nothing can be judged: a photo or the truth cannot be read,
    truth without a segment, a data set of other categories, a reference that fails.
    """
    compared = f"against {reference_title} on {len(photos)} photos of {photos.title}"
    needed = limits.min_identical
    if photos.dataset is None:
        needed = AGREE if needed is None else needed
        compared = f"identical pixels {compared}"
    else:
        compared = f"PQ {'and identical pixels ' if needed is not None else ''}{compared}"

    def refused(reasons: Sequence[str]) -> Verdict:
        return Verdict(passed=False, reasons=list(reasons), compared=compared, limits=limits, images=0)

    if reasons := unlike(candidate.manifest, reference.manifest, limits, reference_title):
        return refused(reasons)
    pair = InTime(reference, limits.seconds, reference_title), InTime(candidate, limits.seconds, CANDIDATE)
    try:
        comparison = run_lockstep(pair, photos, other_size=True, title="gate")
    except PredictionFailed as error:
        if error.runtime != CANDIDATE:
            raise
        return refused([f"{error.photos}: {error.cause}"])
    finally:
        for each in pair:
            each.close()
    return _verdict(comparison, photos, limits, needed, compared)


def unlike(candidate: Manifest, reference: Manifest, limits: GateLimits, title: str) -> list[str]:
    """What clients of the reference would stumble over, whatever the photos say. title: of the reference."""
    reasons = []
    if found := differences(candidate.categories_table, reference.categories_table, CANDIDATE, title):
        reasons.append(f"its class table is another: {found}")
    cure = "; other_size (--other-size) allows it"
    if candidate.resize != reference.resize and not limits.other_size:
        reasons.append(f"its network size is another: {_differing(candidate.resize, reference.resize)}{cure}")
    if candidate.max_batch < reference.max_batch and not limits.other_size:
        reasons.append(f"it takes batches of at most {candidate.max_batch}, {title} of {reference.max_batch}{cure}")
    return reasons


def _differing(mine: ResizeRule, theirs: ResizeRule) -> str:
    """What of two rules is not the same, by its name in the manifest."""
    pairs = ((name, getattr(mine, name), getattr(theirs, name)) for name in ResizeRule.model_fields)
    return ", ".join(f"{name} {one} and not {other}" for name, one, other in pairs if one != other)


def _verdict(
    comparison: Comparison, photos: Photos, limits: GateLimits, needed: float | None, compared: str
) -> Verdict:
    reference, candidate = comparison.columns
    scores = {column: column.stat.results(column.categories) for column in comparison.columns}
    before, after = (column_figures(column, scores) for column in comparison.columns)
    pq = {}
    if photos.dataset is not None:
        if before.results["All"].pq is None and after.results["All"].pq is None:
            raise InputError(f"{photos.title}: no segment in the truth of these photos: there is nothing to judge by")
        pq = {
            group: PQ(
                reference=before.results[group].pq, candidate=after.results[group].pq, classes=before.results[group].n
            )
            for group in GROUPS
        }
    classes = [each for each in class_figures(scores) if each.difference or each.identical not in (None, 1.0)]
    shown = [
        Photo(name=image.file_name, identical=b.identical, reference_pq=a.pq, candidate_pq=b.pq)
        for image, a, b in zip(comparison.images, reference.images, candidate.images, strict=True)
    ]
    differing = sorted((each for each in shown if each.identical < 1), key=lambda each: each.identical)
    reasons = _reasons(before, after, limits, needed, with_truth=photos.dataset is not None)
    if reasons:
        reasons += _where(classes, differing, falls=photos.dataset is not None)
        types = [column.predictor.manifest.precision for column in (candidate, reference)]
        if types[0] != types[1]:
            reasons.append(f"it computes in {types[0]}, {reference.runtime} in {types[1]}")
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        compared=compared,
        limits=limits,
        images=len(shown),
        pq=pq,
        identical=after.identical,
        needed_identical=needed,
        classes=classes[:LISTED],
        photos=differing[:LISTED],
        milliseconds={column.runtime: statistics.median(column.milliseconds) for column in comparison.columns},
        warnings=reference.stat.warnings,
    )


def _reasons(
    before: ColumnFigures, after: ColumnFigures, limits: GateLimits, needed: float | None, with_truth: bool
) -> list[str]:
    reasons = []
    if with_truth:
        for group, difference in after.difference.items():
            if not -difference <= limits.max_pq_drop:
                old, new = (points(each.results[group].pq or 0.0, digits=2) for each in (before, after))
                name = "PQ" if group == "All" else f"PQ ({group.lower()})"
                fall = f"{-100 * difference:.2f} points, from {old} to {new}"
                reasons.append(f"{name} falls by {fall}; allowed {100 * limits.max_pq_drop:g}")
        if not (after.results["All"].pq or 0.0) >= limits.min_pq:
            reasons.append(f"PQ {points(after.results['All'].pq or 0.0, digits=2)}, needed {100 * limits.min_pq:g}")
    if needed is not None and not after.identical >= needed:
        hint = ""
        if not with_truth and limits.min_identical is None:
            hint = "; a network that was trained anew agrees less: judge it by truth (--gt-json), or --min-identical"
        reasons.append(f"{share(after.identical)} of the pixels identical, needed {100 * needed:g} %{hint}")
    return reasons


def _where(classes: Sequence[ClassFigures], photos: Sequence[Photo], falls: bool) -> list[str]:
    """The classes and the photos that differ most, a line each."""
    lines = []
    if falls:
        fallen = sorted((each for each in classes if each.difference < 0), key=lambda each: each.difference)
        named = [
            f"{each.name} {points(each.pq or 0.0)} to {points((each.pq or 0.0) + each.difference)}"
            for each in fallen[:NAMED]
        ]
    else:
        known = [(each.identical, each.name) for each in classes if each.identical is not None]
        named = [f"{name} {share(same)}" for same, name in sorted(known)[:NAMED]]
    if named:
        kind = "fall most, in PQ" if falls else "agree least, in pixels"
        lines.append(f"classes that {kind}: {', '.join(named)}")
    if photos:
        named = [f"{photo.name} {share(photo.identical)}" for photo in photos[:NAMED]]
        lines.append(f"photos that agree least, in pixels: {', '.join(named)}")
    return lines
