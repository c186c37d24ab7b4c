"""What a run over a list of photos is: OUT/plan.json, which every worker and every later run is held against."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, ClassVar, Literal, NamedTuple, cast

from pydantic import ConfigDict, Field, ValidationError

from upsnet import storage
from upsnet.bulk.photo_list import PhotoList
from upsnet.categories import Categories
from upsnet.errors import InputError, one_line
from upsnet.files import sha256
from upsnet.manifest import Manifest
from upsnet.report import Report
from upsnet.runtimes.open import choose, open_runtime
from upsnet.runtimes.options import RuntimeOptions
from upsnet.runtimes.predictor import Predictor

PLAN = "plan.json"
BLOCK_SIZE = 1000
MOST_BLOCK = 100_000  # photos
Format = Literal["tar", "parquet"]


class ModelFacts(NamedTuple):
    """Which network it is, whatever runs it."""

    name: str
    digest: str  # SHA-256
    categories: list[dict[str, Any]]  # as COCO has them


class Plan(Report):
    """What all workers of a run agree on, and each run that goes on with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cure: ClassVar[str] = "; choose another --out"

    photo_list: str  # where it lay; it may lie elsewhere later
    photo_list_sha256: str
    photos: int = Field(ge=1)
    block_size: int = Field(ge=1, le=MOST_BLOCK)
    format: Format
    model: str
    model_digest: str  # SHA-256
    categories: list[dict[str, Any]]

    @property
    def blocks(self) -> int:
        return -(-self.photos // self.block_size)

    def photos_in(self, number: int) -> int:
        """Of a block."""
        return min(self.block_size, self.photos - number * self.block_size)

    def file_name(self, number: int) -> str:
        """A block's file in OUT: two workers on one block write the same file."""
        return f"predictions-{number:06}.{self.format}"

    @property
    def categories_table(self) -> Categories:
        return Categories.from_coco(self.categories)


def make_plan(photos: PhotoList, model: ModelFacts, format: str) -> Plan:
    return Plan(
        photo_list=photos.place if storage.is_url(photos.place) else os.path.abspath(photos.place),
        photo_list_sha256=photos.sha256,
        photos=photos.photos,
        block_size=photos.block_size,
        format=cast(Format, format),
        model=model.name,
        model_digest=model.digest,
        categories=model.categories,
    )


def describe_model(source: RuntimeOptions) -> ModelFacts:
    """Opens it to look. Raises InputError as `open_runtime`."""
    predictor = open_runtime(source)
    try:
        return facts_of(source, predictor)
    finally:
        predictor.close()


def facts_of(source: RuntimeOptions, predictor: Predictor) -> ModelFacts:
    """Of a model that is open."""
    manifest = manifest_of(predictor)
    digest = manifest.onnx_sha256 or _digest(source, manifest)
    return ModelFacts(manifest.name, digest, manifest.categories_table.to_coco())


def manifest_of(predictor: Predictor) -> Manifest:
    """Of a server, that of the version that answered last."""
    return getattr(predictor, "in_service", predictor.manifest)


def _digest(source: RuntimeOptions, manifest: Manifest) -> str:
    """Of the model's file; of a server that doesn't tell, of what it says of its model."""
    if source != RuntimeOptions():  # else the model was made by hand
        place = choose(source)[1]
        if os.path.isfile(place):
            return sha256(place)
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def read_plan(out: str) -> Plan | None:
    """None where the output is not begun. InputError where it holds another's."""
    place = storage.join(out, PLAN)
    if not storage.exists(place):
        return None
    try:
        return Plan.model_validate(json.loads(storage.read(place)))
    except ValidationError as error:
        raise InputError(f"{place}: {one_line(error)}{Plan.cure}") from None
    except ValueError as error:
        raise InputError(f"{place}: not valid JSON: {error}{Plan.cure}") from None


def settle(plan: Plan, out: str) -> None:
    """Writes OUT/plan.json, or checks that the one that is there is the same. Raises InputError, with the cure."""
    before = read_plan(out)
    if before is None:
        stray = next((name for name in sorted(storage.names(out)) if name.startswith("predictions-")), None)
        if stray is not None:
            raise InputError(f"{out}: holds {stray} without a {PLAN}, hence of another run; choose another --out")
        storage.write(storage.join(out, PLAN), (json.dumps(plan.model_dump(mode="json"), indent=1) + "\n").encode())
        before = read_plan(out)  # of two that begin at once, the one whose plan it became
        assert before is not None
    for key, what, cure in COMPARED:
        old, new = getattr(before, key), getattr(plan, key)
        if old != new:
            shown = f" ({old} before, {new} now)" if key in ("photos", "block_size", "format") else ""
            raise InputError(f"{out}: was begun with {what}{shown}; {cure}")


COMPARED = (
    ("photos", "another list of photos", "give that list again, or choose another --out"),
    ("photo_list_sha256", "another list of photos", "give that list again, or choose another --out"),
    ("block_size", "another --block", "leave --block out, or choose another --out"),
    ("format", "another --format", "leave --format out, or choose another --out"),
    ("categories", "a model of other classes", "give that model again, or choose another --out"),
    ("model_digest", "another model", "give that model again, or choose another --out"),
)


class Shard(NamedTuple):
    """Of `of` workers, the one whose blocks b have b % of == place."""

    place: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/8`: the third of eight. Raises InputError."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}: give i/n, as 1/8 to 8/8")
        return cls(int(found[1]) - 1, int(found[2]))


WHOLE = Shard()


def pending(plan: Plan, out: str, shard: Shard = WHOLE) -> list[int]:
    """The numbers of a shard's blocks that are not there yet, in order. A listing of OUT is what decides."""
    there = storage.names(out)
    return [number for number in range(shard.place, plan.blocks, shard.of) if plan.file_name(number) not in there]


def is_there(plan: Plan, out: str, number: int) -> bool:
    """A block's file: somebody else may have written it since OUT was listed."""
    return storage.exists(storage.join(out, plan.file_name(number)))
