"""The photo model of a version, held against the network of the same version, and against itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serving.load_test.questions import Answer
from serving.rollouts.answers import check_outputs, result_of, results_of
from serving.rollouts.latency import agreement
from upsnet.errors import InputError
from upsnet.figures import share
from upsnet.parity.gate import AGREE
from upsnet.parity.pixels import identical_pixels
from upsnet.photos import read_photo
from upsnet.result import PanopticResult
from upsnet.runtimes.predictor import Predictor, predict_photos

SCORES_AGREE = 0.05  # of one segment in two batches


class PhotoAnswers(NamedTuple):
    """What a photo model says to photos."""

    alone: Sequence[Answer]  # to each by itself, for the outputs that clients ask for
    whole: Sequence[Answer]  # the same, for all outputs
    together: Mapping[range, Answer]  # to several in one request, by their places


def judge_photo_model(network: Predictor, photos: Sequence[tuple[str, bytes]], answers: PhotoAnswers) -> list[str]:
    """Reasons against it: an answer that is none, or whose outputs contradict each other or the class table; other
    pixels than the network's, which this process brings to the photo; other ones together than alone.

    photos: names and encoded contents.
    """
    table, names = network.manifest.categories_table, [name for name, _ in photos]
    of_network, by_outputs, by_neighbours = [], [], []
    for number, ((name, content), alone, whole) in enumerate(zip(photos, answers.alone, answers.whole, strict=True), 1):
        try:
            (ours,) = predict_photos(network, [read_photo(content, name)])
            for answer in (alone, whole):
                check_outputs(answer, 1, table)
            theirs = result_of(alone)
            named = [each._replace(category=table[each.category].id) for each in ours.segments]
            of_network.append((_agreement(ours._replace(segments=named), theirs), name))
            by_outputs.append((agreement(whole, alone), name))
        except InputError as error:
            return [f"as a photo, {number} of {len(photos)} ({name}): {error}"]
    for places, answer in answers.together.items():
        some = [names[place] for place in places]
        try:
            check_outputs(answer, len(some), table)
            for place, result in zip(places, results_of(answer, len(some)), strict=True):
                by_neighbours.append((_agreement(result_of(answers.alone[place]), result), names[place]))
        except InputError as error:
            return [f"as photos in one request ({', '.join(some)}): {error}"]
    return [
        *_too_few("its photo model and its network agree", "", of_network),
        *_too_few("its photo model's answers agree", " when it is asked for all outputs", by_outputs),
        *_too_few("its photo model's answers agree", " when several are in one request", by_neighbours),
    ]


def _agreement(a: PanopticResult, b: PanopticResult) -> float:
    """The share of identical pixels. InputError where the same segments have other scores."""
    if a.ids.shape != b.ids.shape:
        return 0.0
    if a.ids.tobytes() == b.ids.tobytes():
        scores = {each.id: each.score for each in b.segments}
        for each in a.segments:
            if not abs(each.score - scores[each.id]) <= SCORES_AGREE:
                raise InputError(f"the score of segment {each.id} is {scores[each.id]:g}, and should be {each.score:g}")
    return float(identical_pixels(a, b).mean())


def _too_few(words: str, when: str, shares: Sequence[tuple[float, str]]) -> list[str]:
    if not shares or (mean := sum(same for same, _ in shares) / len(shares)) >= AGREE:
        return []
    least, name = min(shares)
    return [
        f"{words} in {share(mean)} of the pixels of {len(shares)} photos{when}, needed {100 * AGREE:g} %: least of "
        f"{name} ({share(least)})"
    ]
