"""A new run that starts from another network's weights (`--init`), of the same categories or of others.

Everything that belongs to no class is taken as it is. The rows of the classes (training/model/classes.py) are taken
where the two tables have a category of one name. The others start anew, as the configured seed draws them.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from training.checkpoint import Checkpoint, load, load_weights
from training.config import Config, differing_keys
from training.model.classes import CLASS_TENSORS, THING_HEADS, Counts, take_classes
from upsnet.categories import Categories, Category, differences
from upsnet.errors import InputError
from upsnet.files import PathLike
from upsnet.tables import make_table, print_tables

ClassRule = Literal["exact", "by-name", "new"]  # --classes
RECORD = "init.json"  # in a run's folder: what it started from
MOST_NAMED = 3  # tensors that do not fit
SHAPING = (  # keys of the model's configuration, or their beginnings, that the shapes of its tensors depend on
    *("backbone.kind", "backbone.name", "backbone.stem", "backbone.widths", "backbone.depths", "backbone.expansion"),
    *("backbone.inner", "backbone.deformable_stages", "fpn.channels", "fpn.global_context", "fpn.norm"),
    *("rpn.channels", "rpn.anchor_ratios", "box_head.hidden", "mask_head.", "semantic_head."),
)


class Start(NamedTuple):
    """What a new run takes from a checkpoint, by the names of the categories; RECORD holds it."""

    checkpoint: str
    step: int
    same_categories: bool  # but for their colours
    classes: ClassRule
    kept: list[str]
    semantic_only: list[str]  # a thing on one side and stuff on the other
    anew: list[str]
    dropped: list[str]  # of the checkpoint's
    heads_anew: list[str]  # modules that the checkpoint's network lacks

    @property
    def source(self) -> str:
        heads = f", without its {', '.join(self.heads_anew)}, which start anew" if self.heads_anew else ""
        return f"{self.checkpoint} (step {self.step}){heads}"

    @property
    def table(self) -> Table:
        table = make_table(f"classes, {self.classes}", "", "categories", "count", left=2)
        for what, names in (
            ("kept", self.kept),
            ("kept in the semantic head alone", self.semantic_only),
            ("start anew", self.anew),
            ("dropped", self.dropped),
        ):
            if names:
                table.add_row(what, escape(", ".join(names)), str(len(names)))
        return table

    def show(self) -> None:
        """Print what became of the classes, unless the categories are the same and all are kept."""
        if self.same_categories and not self.anew:
            return
        print_tables(self.table)
        if self.classes == "by-name" and not (self.kept or self.semantic_only):
            print(
                "warning: no category has the name of one of the checkpoint's: every class starts anew, and "
                "the rest of the network is kept; rename the categories if they mean the same",
                file=sys.stderr,
            )


def start_from(
    model: nn.Module, path: Path, config: Config, categories: Categories, classes: ClassRule = "by-name"
) -> Start:
    """Load a checkpoint's weights (averaged ones where it has them) into a new run's network.

    InputError: other conventions of pixels and boxes; weights of another network; with `exact` other categories (but
    for their colours); with `by-name` names that fit several categories.
    """
    checkpoint = load(path)
    pairs = match(checkpoint.categories, categories, classes, path, config.data.train.json_file)
    check_conventions(checkpoint, config, path)
    own, given, theirs = model.state_dict(), checkpoint.weights, checkpoint.categories
    one_thing = things_are_one(config)
    if one_thing:  # then no class has a row for both kinds
        pairs = {i: j for i, j in pairs.items() if categories[i].isthing == theirs[j].isthing}
    heads = [] if theirs.num_things else lacking(own, given)
    given = without(given, [] if categories.num_things else lacking(given, own))
    check_network(without(own, heads), given, checkpoint, config, path)
    taken = take_classes(own, given, pairs, counts(categories, one_thing), counts(theirs, one_thing))
    load_weights(model, own | taken, path)
    return describe(path, checkpoint, categories, pairs, classes, heads)


# Categories


def match(theirs: Categories, own: Categories, classes: ClassRule, path: Path, data: PathLike) -> dict[int, int]:
    """Contiguous category of `own` -> that of the checkpoint `path` whose rows it takes."""
    if classes == "new":
        return {}
    if classes == "exact" and (found := differences(own, theirs, f"{data}", "the checkpoint")):
        raise InputError(
            f"--init {path}: its categories are not those of {data}: {found}; take those of the same name with "
            "--classes by-name, or none with --classes new"
        )
    try:
        return by_name(own, theirs)
    except InputError as error:
        raise InputError(f"--init {path} and {data}: {error}; rename one, or start anew with --classes new") from None


def plain(name: str) -> str:
    """A name without what people write in several ways: case, and blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


# What two categories must have in common, the strictest first.
LIKENESS: tuple[Callable[[Category], Hashable], ...] = (
    lambda each: (each.id, each.name, each.isthing),  # the id tells categories of one name apart
    lambda each: (each.name, each.isthing),
    lambda each: (plain(each.name), each.isthing),
    lambda each: each.name,
    lambda each: plain(each.name),
)


def by_name(own: Categories, theirs: Categories) -> dict[int, int]:
    """Contiguous category of `own` -> that of `theirs` with its name; one on each side.

    InputError: a name fits several categories of a table, and nothing tells which is meant.
    """
    pairs: dict[int, int] = {}
    for likeness in LIKENESS:
        mine, other = alike(own, pairs.keys(), likeness), alike(theirs, pairs.values(), likeness)
        for key in [key for key in mine if key in other]:
            for table, found in ((own, mine[key]), (theirs, other[key])):
                if len(found) > 1:
                    twice = " and ".join(f"{table[i].id} '{table[i].name}'" for i in found)
                    raise InputError(f"categories {twice} have one name, so it is not known whose rows are meant")
            pairs[mine[key][0]] = other[key][0]
    return dict(sorted(pairs.items()))


def alike(
    table: Categories, without: Collection[int], likeness: Callable[[Category], Hashable]
) -> dict[Hashable, list[int]]:
    """The categories that are not in `without`, by what is compared of them."""
    groups = defaultdict(list)
    for index, category in enumerate(table):
        if index not in without:
            groups[likeness(category)].append(index)
    return groups


def describe(
    path: Path,
    checkpoint: Checkpoint,
    own: Categories,
    pairs: Mapping[int, int],
    classes: ClassRule,
    heads: list[str],
) -> Start:
    """`pairs` in the words of the categories."""
    theirs = checkpoint.categories
    same_kind = {i: own[i].isthing == theirs[j].isthing for i, j in pairs.items()}

    def named(indices: Collection[int]) -> list[str]:
        names = ((own[i].name, theirs[pairs[i]].name) for i in indices)
        return [name if name == other else f"{name} ({other} there)" for name, other in names]

    return Start(
        str(path),
        checkpoint.step,
        not differences(own, theirs, "", ""),
        classes,
        kept=named([i for i in pairs if same_kind[i]]),
        semantic_only=named([i for i in pairs if not same_kind[i]]),
        anew=[category.name for i, category in enumerate(own) if i not in pairs],
        dropped=[category.name for i, category in enumerate(theirs) if i not in pairs.values()],
        heads_anew=heads,
    )


# The rest of the network


def check_conventions(checkpoint: Checkpoint, config: Config, path: Path) -> None:
    """InputError where boxes, pixels and semantic classes mean something else to the checkpoint's weights."""
    differing = differing_keys(checkpoint.config.model, config.model)
    for key in ("conventions", "pixel_mean", "pixel_std", "panoptic.merge"):
        if key in differing:
            raise InputError(f"--init {path}: trained with another model.{key} ({differing[key]}); set it as there")


def things_are_one(config: Config) -> bool:
    """To the semantic head."""
    return config.model.panoptic.merge == "heuristic"


def counts(categories: Categories, one_thing: bool) -> Counts:
    return Counts(categories.num_stuff, categories.num_things, one_thing)


def lacking(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """The heads for things that `own` has and `given` has not."""
    modules, others = ({name.partition(".")[0] for name in tensors} for tensors in (own, given))
    return [head for head in THING_HEADS if head in modules and head not in others]


def without(tensors: Mapping[str, Tensor], heads: list[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in heads}


def check_network(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], checkpoint: Checkpoint, config: Config, path: Path
) -> None:
    """InputError, with the keys of the configuration to set, unless all but the number of classes fits."""
    theirs = counts(checkpoint.categories, things_are_one(checkpoint.config))
    wanted = {name: list(tensor.shape) for name, tensor in own.items()}
    wanted |= {name: [rows.total(theirs), *wanted[name][1:]] for name, rows in CLASS_TENSORS.items() if name in own}
    shapes = {name: list(tensor.shape) for name, tensor in given.items()}
    unfit = [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]
    if not unfit:
        return
    named = [f"{name} is {shapes.get(name, 'absent')} there and {wanted.get(name, 'absent')} here" for name in unfit]
    more = f" and {len(unfit) - MOST_NAMED} more tensors" if len(unfit) > MOST_NAMED else ""
    keys = {k: v for k, v in differing_keys(checkpoint.config.model, config.model).items() if k.startswith(SHAPING)}
    if "backbone.kind" in keys:  # what follows from it goes without saying
        keys = {key: v for key, v in keys.items() if key == "backbone.kind" or not key.startswith("backbone.")}
    cure = ", ".join(f"model.{key} ({values})" for key, values in keys.items())
    raise InputError(
        f"--init {path}: weights of another network: {'; '.join(named[:MOST_NAMED])}{more}; "
        + (f"set as there, it against yours: {cure}" if keys else "use the version of upsnet-trt that wrote it")
    )
