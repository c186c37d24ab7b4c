"""What the gate lets through, and what it says of what it does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upsnet.categories import Category
from upsnet.datasets.folder import PanopticFolder
from upsnet.errors import InputError, ServerError
from upsnet.figures import share
from upsnet.files import write_json
from upsnet.geometry import NetworkBatch, ResizeRule
from upsnet.parity.deadline import InTime
from upsnet.parity.gate import GateLimits, Verdict, judge
from upsnet.parity.lockstep import run_lockstep
from upsnet.parity.photos import LabelledPhotos, PlainPhotos
from upsnet.photos import read_photo, write_png
from upsnet.runtimes.predictor import RawPrediction

Fake = Callable[..., Any]
DAMAGE = ((48, 60), 0.125)  # 000003.png: 6 rows of sky become void
SKY_SHARE = 1 - 6 * 60 / (48 * 64 + 48 * 48 + 64 * 48 + 48 * 60 + 50 * 48)


@pytest.fixture
def labelled(gt_json: Path) -> LabelledPhotos:
    return LabelledPhotos(PanopticFolder(gt_json))


@pytest.fixture
def plain(gt_json: Path) -> PlainPhotos:
    return PlainPhotos(gt_json.with_name("val"))


def changed(predictor: Any, **manifest: Any) -> Any:
    predictor.manifest = predictor.manifest.model_copy(update=manifest)
    return predictor


class Failing:
    """Answers like the predictor it has, until its `last` answer; then it does what is given."""

    def __init__(self, predictor: Any, last: int, then: Callable[[], None]) -> None:
        self.name, self.manifest, self.device_name, self.kernels = "x", predictor.manifest, "cpu", "none"
        self._predictor, self._left, self._then = predictor, last, then

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        if self._left == 0:
            self._then()
        self._left -= 1
        return self._predictor.predict(batch)

    def close(self) -> None: ...


def dies() -> None:
    raise ServerError("the server at 127.0.0.1:1 fails: Stub process is not healthy", "INTERNAL")


def test_the_same_passes_with_and_without_truth(labelled: LabelledPhotos, plain: PlainPhotos, fake: Fake) -> None:
    with_truth = judge(fake("a", permute=True), fake("b"), labelled, reference_title="version 2")
    assert with_truth.passed and with_truth.reasons == [] and with_truth.images == 5 and with_truth.identical == 1
    assert with_truth.compared == f"PQ against version 2 on 5 photos of {labelled.title}"
    assert with_truth.pq["All"].reference == with_truth.pq["All"].candidate and with_truth.needed_identical is None
    assert set(with_truth.milliseconds) == {"version 2", "the candidate"} and with_truth.photos == []
    without = judge(fake("a"), fake("b"), plain)
    assert without.passed and without.pq == {} and without.needed_identical == 0.98
    assert without.compared.startswith("identical pixels against the version in service on 5 photos of ")
    assert Verdict.model_validate_json(without.model_dump_json()) == without


def test_a_fall_of_pq_names_group_class_and_photo(labelled: LabelledPhotos, fake: Fake) -> None:
    verdict = judge(fake("a", damage=DAMAGE), fake("b"), labelled)
    assert not verdict.passed
    # The sky of image 3: 24 rows of 60 without what the cats cover; 6 of them are gone. The other four are whole.
    sky = 24 * 60 - (14 * 16 + 6 * 16 - 6 * 6)
    fall = 100 * (6 * 60 / sky) / 5
    assert f"PQ (stuff) falls by {fall / 2:.2f} points" in "; ".join(verdict.reasons)
    assert f"classes that fall most, in PQ: sky 100.0 to {100 - fall:.1f}" in verdict.reasons
    assert any("photos that agree least, in pixels: 003.png 87.500 %" in reason for reason in verdict.reasons)
    assert [photo.name for photo in verdict.photos] == ["003.png"]
    assert [each.name for each in verdict.classes] == ["sky"]
    assert verdict.identical == pytest.approx(SKY_SHARE)
    wide = GateLimits(max_pq_drop=0.05)
    assert judge(fake("a", damage=DAMAGE), fake("b"), labelled, wide).passed, "pixels are told, and do not decide"


def test_a_candidate_that_is_better_passes_though_it_differs(labelled: LabelledPhotos, fake: Fake) -> None:
    verdict = judge(fake("a"), fake("b", damage=DAMAGE), labelled)
    assert (
        verdict.passed
        and verdict.identical == pytest.approx(SKY_SHARE)
        and [photo.name for photo in verdict.photos] == ["003.png"]
    )
    asked = judge(fake("a"), fake("b", damage=DAMAGE), labelled, GateLimits(min_identical=0.999))
    assert asked.reasons[0] == f"{share(SKY_SHARE)} of the pixels identical, needed 99.9 %"
    assert asked.compared.startswith("PQ and identical pixels against ")


def test_photos_without_truth_are_judged_by_their_pixels(plain: PlainPhotos, fake: Fake) -> None:
    verdict = judge(fake("a", damage=DAMAGE), fake("b"), plain)
    assert verdict.reasons[0].startswith(f"{share(SKY_SHARE)} of the pixels identical, needed 98 %; a network that")
    assert verdict.reasons[1].startswith("classes that agree least, in pixels: sky ")
    assert judge(fake("a", damage=DAMAGE), fake("b"), plain, GateLimits(min_identical=0.95)).passed


def test_a_least_pq_holds_for_the_candidate(labelled: LabelledPhotos, fake: Fake) -> None:
    verdict = judge(fake("a"), fake("b"), labelled, GateLimits(min_pq=0.99))
    assert len(verdict.reasons) == 1 and verdict.reasons[0].endswith(", needed 99")


def test_another_class_table_is_named_and_no_photo_is_shown(labelled: LabelledPhotos, fake: Fake) -> None:
    candidate = fake("a")
    table = [
        each.model_copy(update={"name": "hound"}) if each.id == 3 else each for each in candidate.manifest.categories
    ]
    verdict = judge(changed(candidate, categories=table), fake("b"), labelled)
    assert verdict.reasons == [
        "its class table is another: 3 'hound' (thing) in the candidate, 'dog' (thing) in the version in service"
    ]
    assert verdict.images == 0 and candidate.batches == []
    more = Category(id=90, name="cow", isthing=True, color=(1, 2, 3))
    verdict = judge(changed(fake("a"), categories=[*fake("b").manifest.categories, more]), fake("b"), labelled)
    assert "90 'cow' only in the candidate" in verdict.reasons[0]


def test_another_size_and_smaller_batches_are_named(labelled: LabelledPhotos, fake: Fake) -> None:
    other = changed(fake("a"), resize=ResizeRule(short_side=96, max_side=128), max_batch=1)
    verdict = judge(other, fake("b"), labelled)
    size = "another: short_side 96 and not 48, max_side 128 and not 64;"
    assert (
        size in verdict.reasons[0]
        and "it takes batches of at most 1, the version in service of 4" in verdict.reasons[1]
    )
    assert all("--other-size" in reason for reason in verdict.reasons) and other.batches == []
    padded = changed(fake("a"), resize=fake("b").manifest.resize.model_copy(update={"divisor": 64}))
    (reason,) = judge(padded, fake("b"), labelled).reasons
    assert reason == "its network size is another: divisor 64 and not 32; other_size (--other-size) allows it"
    # Colours survive enlarging, but for the edges that it blurs.
    assert judge(other, fake("b"), labelled, GateLimits(other_size=True, max_pq_drop=1)).images == 5


def test_another_precision_is_named_beside_what_it_did(labelled: LabelledPhotos, fake: Fake) -> None:
    verdict = judge(changed(fake("a", damage=DAMAGE), precision="fp16"), fake("b"), labelled)
    assert verdict.reasons[-1] == "it computes in fp16, the version in service in fp32"


def test_a_crash_is_told_with_the_photo(labelled: LabelledPhotos, fake: Fake) -> None:
    verdict = judge(Failing(fake("a"), 3, dies), fake("b"), labelled)
    assert not verdict.passed and verdict.reasons == [
        "photo 4 of 5 (003.png): the server at 127.0.0.1:1 fails: Stub process is not healthy"
    ]


def test_a_hang_is_told_with_the_photo_and_ends(labelled: LabelledPhotos, fake: Fake) -> None:
    release = threading.Event()
    verdict = judge(
        Failing(fake("a"), 1, lambda: (release.wait(), None)[1]), fake("b"), labelled, GateLimits(seconds=0.3)
    )
    release.set()
    assert verdict.reasons == ["photo 2 of 5 (001.png): no answer within 0.3 s"]


def test_an_answer_that_is_none_is_told_with_the_photo(labelled: LabelledPhotos, fake: Fake) -> None:
    class Wrong(Failing):
        def predict(self, batch: NetworkBatch) -> RawPrediction:
            return super().predict(batch)._replace(segment_count=np.zeros(1, np.int32))

    verdict = judge(Wrong(fake("a"), -1, dies), fake("b"), labelled)
    assert verdict.reasons[0].startswith("photo 1 of 5 (000.png): panoptic has pixels of segment row ")


def test_what_cannot_be_judged_is_bad_input(labelled: LabelledPhotos, gt_json: Path, fake: Fake) -> None:
    with pytest.raises(InputError, match=r"^version 2: photo 1 of 5 \(000\.png\): the server .* not healthy$"):
        judge(fake("a"), Failing(fake("b"), 0, dies), labelled, reference_title="version 2")
    table = fake("a").manifest.categories[:-1]
    with pytest.raises(InputError, match="categories are not those of the model"):
        judge(changed(fake("a"), categories=table), changed(fake("b"), categories=table), labelled)
    content = json.loads(gt_json.read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = []
        png = gt_json.with_name("panoptic_val") / annotation["file_name"]
        write_png(png, 0 * read_photo(png))
    write_json(gt_json, content)
    empty = LabelledPhotos(PanopticFolder(gt_json))
    with pytest.raises(InputError, match="there is nothing to judge by"):
        judge(Failing(Blank(fake("a")), -1, dies), Failing(Blank(fake("b")), -1, dies), empty)
    (gt_json.parent / "nothing").mkdir()
    with pytest.raises(InputError, match="without photos"):
        PlainPhotos(gt_json.parent / "nothing")


class Blank:
    """Void everywhere."""

    def __init__(self, predictor: Any) -> None:
        self.manifest, self._predictor = predictor.manifest, predictor

    def predict(self, batch: NetworkBatch) -> RawPrediction:
        raw = self._predictor.predict(batch)
        return RawPrediction(0 * raw.panoptic, raw.segments, 0 * raw.segment_count)


def test_photos_of_a_folder_keep_their_names(plain: PlainPhotos, gt_json: Path) -> None:
    (gt_json.parent / "val/deep").mkdir()
    (gt_json.parent / "val/000.png").rename(gt_json.parent / "val/deep/z.png")
    found = PlainPhotos(gt_json.parent / "val")
    assert [found.name(index) for index in range(len(found))] == [
        "001.png",
        "002.png",
        "003.png",
        "004.png",
        "deep/z.png",
    ]
    assert len(PlainPhotos(gt_json.parent / "val", limit=2)) == 2
    one = PlainPhotos(gt_json.parent / "val/001.png")
    assert (len(one), one.name(0), one.read(0).photo.shape) == (1, "001.png", (48, 48, 3))
    assert one.read(0).truth is None and one.read(0).image_id is None


def test_lockstep_without_truth_counts_pixels_alone(plain: PlainPhotos, fake: Fake) -> None:
    comparison = run_lockstep([fake("a"), fake("b", damage=DAMAGE)], plain)
    assert [image.image_id for image in comparison.images] == [None] * 5
    assert all(each.pq is None for column in comparison.columns for each in column.images)
    assert comparison.columns[1].class_identical.sum() / comparison.columns[1].class_pixels.sum() == pytest.approx(
        SKY_SHARE
    )
    assert comparison.examples[0].file_name == "003.png" and comparison.examples[0].truth is None
    other = changed(fake("c"), categories=fake("c").manifest.categories[:-1])
    with pytest.raises(InputError, match="other categories: 7 'cat' only in a"):
        run_lockstep([fake("a"), other], plain)


def test_in_time_says_what_the_other_says(fake: Fake) -> None:
    batch = NetworkBatch(np.zeros((1, 64, 64, 3), np.uint8), np.array([[64, 64]], np.int32), np.ones(1, np.float32))
    quick = InTime(fake("a"), 60, "quick")
    assert (quick.predict(batch).panoptic == fake("a").predict(batch).panoptic).all() and quick.device_name == "cpu"
    quick.close()
    own = InTime(Failing(fake("a"), 0, lambda: (_ for _ in ()).throw(TimeoutError("its own"))), 60, "own")
    with pytest.raises(TimeoutError, match="its own"):
        own.predict(batch)
    release = threading.Event()
    slow = InTime(Failing(fake("a"), 0, lambda: (release.wait(), None)[1]), 0.2, "slow")
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
            slow.predict(batch)
    assert time.monotonic() - start < 0.2, "the second call does not wait again"
    release.set()
