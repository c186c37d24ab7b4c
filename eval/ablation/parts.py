"""The parts: what leaves each of them out of a configuration, and what takes it in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from training.config import differing_keys, load_config
from upsnet.errors import InputError

Prediction = Literal["as it is", "without pruning", "without unknown"]  # how the trained network is scored


class Part(NamedTuple):
    """Overrides of a configuration, as `--set` takes them. Without any, the part belongs to inference alone.

    needs: what a configuration must have for a fair comparison."""

    name: str
    without: tuple[str, ...] = ()
    taken_in: tuple[str, ...] = ()
    prediction: Prediction = "as it is"
    needs: tuple[str, ...] = ()


class Variant(NamedTuple):
    """What is trained and scored: everything, or all but one part, or one part more."""

    name: str
    overrides: tuple[str, ...] = ()
    prediction: Prediction = "as it is"
    added: bool = False  # one part more

    @property
    def folder(self) -> str:
        """Variants that are trained alike have one."""
        return self.name.replace(" ", "_") if self.overrides else "everything"


EVERYTHING = Variant("everything")
LAYOUT = "stem: [32, 48], widths: [48, 64, 128, 192], depths: [1, 2, 2, 1]"  # the demo's backbone
MBCONV = f"model.backbone={{kind: hybrid, {LAYOUT}, expansion: 4}}"
BOTTLENECKS = f"model.backbone={{kind: bottleneck, {LAYOUT}, inner: [42, 58, 96, 159]}}"  # as many multiplications
PARTS = (
    Part("panoptic loss", ("loss.panoptic=0",), ("loss.panoptic=0.5",)),
    Part(
        "deformable convolutions", ("model.semantic_head.deformable=false",), ("model.semantic_head.deformable=true",)
    ),
    Part("mask pruning", prediction="without pruning"),
    Part(
        "unknown class",
        ("model.panoptic.keep_fraction=1",),
        prediction="without unknown",
        needs=("model.panoptic.merge=logits",),
    ),
    Part("global context", ("model.fpn.global_context=false",), ("model.fpn.global_context=true",)),
    Part("RoI-wise semantic loss", ("loss.semantic_roi=0",), ("loss.semantic_roi=0.1",)),
    Part("MBConv blocks", (BOTTLENECKS,), needs=(MBCONV,)),
    Part("average of the weights", ("schedule.ema=null",), ("schedule.ema=0.998",)),
    Part("warm-up", ("schedule.warmup=0",), ("schedule.warmup=100",)),
    Part("cosine", ("schedule.policy=step", "schedule.decay=[2/3, 8/9]"), ("schedule.policy=cosine",)),
    Part(
        "four images a step",
        ("schedule.images_per_step=8", "schedule.iterations=440", "schedule.warmup=50"),
        needs=("schedule.images_per_step=4", "schedule.iterations=880"),
    ),
    Part("group norm in the mask head", ("model.mask_head.norm=none",), ("model.mask_head.norm=group",)),
    Part("batch norm in the FPN", ("model.fpn.norm=none",), ("model.fpn.norm=batch",)),
    Part("slow offsets", ("schedule.offset_lr=1",), ("schedule.offset_lr=0.1",)),
    Part(
        "generalised IoU",
        ("model.box_head.regression=smooth_l1", "loss.boxes=1"),
        ("model.box_head.regression=giou", "loss.boxes=5"),
    ),
    Part("dice loss", ("loss.dice=0",), ("loss.dice=1",)),
    Part("scale jitter", ("data.augment.scale=[1.0, 1.0]",), ("data.augment.scale=[0.6, 1.6]",)),
    Part("copy-paste", ("data.augment.copy_paste=0",), ("data.augment.copy_paste=0.5",)),
)


def variants_of(
    config: Path, overrides: tuple[str, ...] = (), names: Sequence[str] | None = None
) -> tuple[list[Variant], list[str]]:
    """Everything first, then a variant for each of the parts (of those in `names`), without it where the configuration
    has it and with it where it has not; and a line for each part that the configuration cannot be with nor without.
    InputError: a name is no part's."""
    known = [part.name for part in PARTS]
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}")
    base, variants, left_out = load_config(config, overrides), [EVERYTHING], []
    for part in PARTS:
        if names and part.name not in names:
            continue
        if not has(config, overrides, part.needs):
            left_out.append(f"{part.name}: only with {' '.join(part.needs)}")
            continue
        tried = [
            Variant(f"without {part.name}", part.without, part.prediction),
            Variant(f"with {part.name}", part.taken_in, added=True),
        ]
        if not part.without:
            variants.append(tried[0])
            continue
        for variant in tried:
            try:
                changed = load_config(config, (*overrides, *variant.overrides))
            except InputError as error:
                left_out.append(f"{variant.name}: {error}")
                break
            if differing_keys(base, changed):
                variants.append(variant)
                break
        else:
            left_out.append(f"{part.name}: the configuration cannot be without it, nor with it")
    return variants, left_out


def has(config: Path, overrides: tuple[str, ...], needs: tuple[str, ...]) -> bool:
    """Whether the configuration is what it would be with the overrides `needs`."""
    try:
        return not differing_keys(load_config(config, overrides), load_config(config, (*overrides, *needs)))
    except InputError:  # they contradict what it has
        return False
