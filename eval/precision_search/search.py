"""The search: which modules may have which types, by what each costs of PQ alone and all cost together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from upsnet.errors import InputError
from upsnet.manifest import EIGHT_BITS, ModuleType, Recipe


class Figures(NamedTuple):
    """Of a recipe: PQ as a fraction, and the time of an image in the evaluator's unit."""

    pq: float
    time: float


class Evaluate(Protocol):
    """Measures a recipe on the images of the search, or with `whole` on all; the same one costs nothing twice."""

    def __call__(self, recipe: Recipe, whole: bool = False) -> Figures: ...


class OutOfBudgetError(Exception):
    """There are no evaluations left."""


class Alone(NamedTuple):
    """What a module costs and gains that is alone in a narrow type."""

    module: str
    kind: ModuleType
    drop: float  # of PQ, points
    saved: float  # time


class Found(NamedTuple):
    """What a search came to."""

    recipe: Recipe
    reference: Figures  # all in float32, on all images
    figures: Figures  # the recipe's, on all images
    alone: list[Alone]  # in the order in which they were added
    undecided: list[str]  # modules of which the budget ended before it was known what they may have

    @property
    def complete(self) -> bool:
        return not self.undecided


def search(
    evaluate: Evaluate,
    modules: Mapping[str, Sequence[ModuleType]],
    floats: Sequence[ModuleType],
    max_drop: float,
    note: Callable[[str], None] = lambda _: None,
) -> Found:
    """The recipe that is fastest, as far as this search sees, among those that lose at most `max_drop` points of PQ.

    modules: the types that each may have, the narrowest first; floats: those that may be everybody's default, the best
    first. All in float32 is the reference.

    1. The first default that alone keeps within the limit; 2. each module alone at its narrowest type; 3. in the order
    of points lost for time saved they are added, all at once; where that loses too much, half of them, and then half of
    the rest; 4. the same with the next type for what was left; 5. the recipe on all images, without what was added last
    until it keeps within the limit there, too.
    """
    reference = evaluate(Recipe())
    default: ModuleType = "fp32"
    chosen: dict[str, ModuleType] = {}
    alone: list[Alone] = []
    kinds = {name: list(own) for name, own in modules.items()}
    refused: set[tuple[str, ModuleType]] = set()
    undecided: list[str] = []

    def lost(figures: Figures, against: Figures) -> float:
        return 100 * (against.pq - figures.pq)

    def add(those: Sequence[tuple[str, ModuleType]]) -> None:
        """As many of them as the limit allows, in this order."""
        nonlocal chosen
        if not those:
            return
        trial = chosen | dict(those)
        if lost(evaluate(Recipe(default=default, modules=trial)), reference) <= max_drop:
            chosen = trial
        elif len(those) > 1:
            half = len(those) // 2
            add(those[:half])
            add(those[half:])
        else:
            refused.update(those)

    try:
        for kind in floats:
            note(f"all in {kind}")
            if lost(evaluate(Recipe(default=kind)), reference) <= max_drop:
                default = kind
                break
        base = evaluate(Recipe(default=default))
        kinds = {name: [each for each in own if each != default] for name, own in modules.items()}
        for name, own in kinds.items():
            if own:
                note(f"{name} alone in {own[0]}")
                figures = evaluate(Recipe(default=default, modules={name: own[0]}))
                alone.append(Alone(name, own[0], lost(figures, base), base.time - figures.time))
        alone.sort(key=lambda each: (max(each.drop, 0) / max(each.saved, 1e-12), -each.saved))
        worth = [each.module for each in alone if each.saved > 0]
        for step in range(max((len(own) for own in kinds.values()), default=0)):
            rest = [(name, kinds[name][step]) for name in worth if name not in chosen and len(kinds[name]) > step]
            note(f"together: {', '.join(f'{name} {kind}' for name, kind in rest)}")
            add(rest)
    except OutOfBudgetError:
        useless = {each.module for each in alone if each.saved <= 0}
        undecided = [
            name
            for name, own in kinds.items()
            if name not in {*chosen, *useless} and {(name, each) for each in own} - refused
        ]
    note("on all images")
    whole = evaluate(Recipe(), whole=True)
    removed = 1
    while True:
        recipe = Recipe(default=default, modules=chosen)
        figures = evaluate(recipe, whole=True)
        if lost(figures, whole) <= max_drop or recipe == Recipe():
            return Found(recipe, whole, figures, alone, undecided)
        if chosen:
            chosen = dict(list(chosen.items())[:-removed])
            removed *= 2
        else:
            default = "fp32"


def types_of(wanted: Sequence[ModuleType], eligible: bool) -> list[ModuleType]:
    """Of the types asked for those that a module can have, the narrowest first; eligible: whether eight bits can be."""
    order = [*(each for each in EIGHT_BITS if each in wanted), *(each for each in wanted if each not in EIGHT_BITS)]
    return [each for each in order if eligible or each not in EIGHT_BITS]


def check_types(wanted: Sequence[str]) -> list[ModuleType]:
    """InputError for a name that is no type."""
    known: dict[str, ModuleType] = {"fp16": "fp16", "bf16": "bf16", "int8": "int8", "fp8": "fp8"}
    for name in wanted:
        if name not in known:
            raise InputError(f"no type {name!r}; there are {', '.join(known)} (float32 is what they are held against)")
    return [known[name] for name in dict.fromkeys(wanted)]
