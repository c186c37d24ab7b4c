"""--init: what a new run takes from a network of the same categories, of others, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny_network import PANOPTIC_FPN, SMALL, settings, tiny
from training.checkpoint import Checkpoint, load, save, versions
from training.config import Config
from training.fine_tuning import ClassRule, Start, by_name, start_from
from training.loop import train
from training.model.classes import CLASS_ROWS, Counts, take_classes
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.errors import InputError

SPREAD = {"box_head.logits": 30.0, "mask_head.score": 0.3, "semantic_head.score": 0.3}
BASE = ["sky", "sea", "sand"], ["cat", "dog", "boat"]


def table(stuff: Sequence[str], things: Sequence[str], first_id: int = 1) -> Categories:
    entries = [{"id": first_id + i, "name": name, "isthing": 0} for i, name in enumerate(stuff)]
    entries += [{"id": first_id + 100 + i, "name": name, "isthing": 1} for i, name in enumerate(things)]
    return Categories.from_coco(entries)


def network(categories: Categories, seed: int = 0, **model: Any) -> tuple[UPSNet, Config]:
    """In eval mode, with class scores spread so that it finds things and tells stuff apart."""
    config = settings(Path("x"), model=SMALL | model)
    torch.manual_seed(seed)
    made = UPSNet(config.model, categories.num_stuff, categories.num_things)
    for name, layer in made.named_modules():
        if name in SPREAD and isinstance(layer, nn.Linear | nn.Conv2d):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=SPREAD[name])
            nn.init.normal_(layer.bias, std=SPREAD[name] / 1000)
    return made.eval(), config


def written(path: Path, categories: Categories, **model: Any) -> UPSNet:
    """A checkpoint of a random network at `path`."""
    made, config = network(categories, seed=1, **model)
    save(path, Checkpoint(config, categories, 5, None, made.state_dict(), {}, versions()))
    return made


def started(path: Path, own: Categories, classes: ClassRule = "by-name", **model: Any) -> tuple[UPSNet, UPSNet, Start]:
    """A new network before and after it has taken what it can of the checkpoint at `path`."""
    fresh, made = (network(own, seed=2, **model)[0] for _ in range(2))
    return fresh, made, start_from(made, path, network(own, **model)[1], own, classes)


def refusal(path: Path, own: Categories, classes: ClassRule = "by-name", **model: Any) -> str:
    with pytest.raises(InputError) as caught:
        started(path, own, classes, **model)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def rows(model: UPSNet, categories: Categories) -> dict[tuple[str, str], Tensor]:
    """(layer, class) -> its weights and biases, in a row for each output; written without the code that is tested."""
    found: dict[tuple[str, str], Tensor] = {}
    for layer in CLASS_ROWS:
        module = model.get_submodule(layer)
        weight, bias = module.weight.detach().flatten(1), module.bias.detach().unsqueeze(1)  # type: ignore[union-attr, operator]
        both = torch.cat([weight, bias], dim=1)
        things = ["background", *categories.names[categories.num_stuff :]]
        names = categories.names if layer == "semantic_head.score" else things
        each = 4 if layer == "box_head.deltas" else 1
        assert len(both) == each * len(names)
        found |= {(layer, name): both[each * i : each * (i + 1)] for i, name in enumerate(names)}
    return found


# Rows


def test_classes_are_taken_by_name(tmp_path: Path) -> None:
    """Other ids, another order, one class less and one more of each kind."""
    theirs, own = table(*BASE), table(["grass", "sand", "sky"], ["boat", "car", "cat"], first_id=7)
    source = written(tmp_path / "x.safetensors", theirs)
    fresh, made, start = started(tmp_path / "x.safetensors", own)
    given, before, after = rows(source, theirs), rows(fresh, own), rows(made, own)
    for key, row in after.items():
        wanted = before if key[1] in ("grass", "car") else given
        assert torch.equal(row, wanted[key]), key
    assert sum(key in given for key in after) == 4 + 3 * 3  # sky and sand, cat and boat; cat, boat and the background
    others = {name: tensor for name, tensor in made.state_dict().items() if name.rpartition(".")[0] not in CLASS_ROWS}
    assert others and all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in others.items())
    assert (start.kept, start.anew) == (["sand", "sky", "boat", "cat"], ["grass", "car"])
    assert (start.dropped, start.semantic_only, start.step) == (["sea", "dog"], [], 5)


def test_a_class_of_the_other_kind_takes_its_semantic_row_alone(tmp_path: Path) -> None:
    theirs, own = table(["sky", "cat"], ["dog", "sea"]), table(["sky", "sea"], ["cat", "dog"])
    source = written(tmp_path / "x", theirs)
    fresh, made, start = started(tmp_path / "x", own)
    given, before, after = rows(source, theirs), rows(fresh, own), rows(made, own)
    for (layer, name), row in after.items():
        anew = name == "cat" and layer != "semantic_head.score"
        assert torch.equal(row, (before if anew else given)[layer, name]), (layer, name)
    assert (start.kept, start.semantic_only, start.anew, start.dropped) == (["sky", "dog"], ["sea", "cat"], [], [])


def semantic_rows(model: UPSNet) -> list[Tensor]:
    score = model.get_submodule("semantic_head.score")
    assert isinstance(score, nn.Conv2d) and score.bias is not None
    return list(torch.cat([score.weight.detach().flatten(1), score.bias.detach().unsqueeze(1)], dim=1))


@pytest.mark.parametrize(
    ("own", "taken"),
    [
        (table(["sand", "grass", "sky"], ["boat", "car"]), [2, None, 0, 3]),
        (table(["grass"], ["cat"]), [None, 3]),
        (table(["sea"], ["car", "ant"]), [1, 3]),  # the row of all things belongs to no class
        (table(["grass"], ["car"]), [None, None]),
        (table(["cat"], ["sky", "car"]), [None, None]),  # of the other kind: there is no row to take
        (table(["sea", "sky"], []), [1, 0]),
        (table([], ["dog"]), [None, 3]),  # the background, which the other network does not have
    ],
    ids=["mixed", "a thing", "stuff", "none", "kinds", "stuff alone", "things alone"],
)
def test_things_as_one_semantic_class(tmp_path: Path, own: Categories, taken: list[int | None]) -> None:
    """Stuff rows by name; all things as one where any class is taken. Boxes and masks have a row for each thing."""
    theirs = table(*BASE)
    source = written(tmp_path / "x", theirs, **PANOPTIC_FPN)
    fresh, made, start = started(tmp_path / "x", own, **PANOPTIC_FPN)
    given, before, after = semantic_rows(source), semantic_rows(fresh), semantic_rows(made)
    assert len(after) == len(taken) == max(1, own.num_stuff) + min(1, own.num_things)
    for index, (row, other) in enumerate(zip(after, taken, strict=True)):
        assert torch.equal(row, before[index] if other is None else given[other]), index
    kinds = {(category.name, category.isthing) for category in theirs}
    assert start.kept == [category.name for category in own if (category.name, category.isthing) in kinds]
    assert start.semantic_only == [] and sorted(start.kept + start.anew) == sorted(own.names)
    names = [category.name for category in own if category.isthing]
    for name in set(names) & set(start.kept):
        i, j = 1 + names.index(name), 1 + BASE[1].index(name)
        assert torch.equal(made.mask_head.score.weight[i], source.mask_head.score.weight[j])
        assert torch.equal(
            made.box_head.deltas.weight[4 * i : 4 * i + 4], source.box_head.deltas.weight[4 * j : 4 * j + 4]
        )


def test_another_merge_is_refused(tmp_path: Path) -> None:
    """The rows of its semantic head mean something else."""
    written(tmp_path / "x", table(*BASE))
    merge = {"panoptic": SMALL["panoptic"] | {"merge": "heuristic"}}
    message = refusal(tmp_path / "x", table(*BASE), **merge)
    assert "another model.panoptic.merge (logits against heuristic); set it as there" in message


def test_new_classes_start_anew_with_their_background(tmp_path: Path) -> None:
    written(tmp_path / "x", table(*BASE))
    fresh, made, start = started(tmp_path / "x", table(*BASE), "new")
    before, after = rows(fresh, table(*BASE)), rows(made, table(*BASE))
    assert all(torch.equal(row, before[key]) for key, row in after.items())
    assert torch.equal(made.rpn.conv.weight, load(tmp_path / "x").model["rpn.conv.weight"])
    assert not start.kept and len(start.anew) == len(start.dropped) == 6


def test_no_name_in_common_is_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "x", table(*BASE))
    _, _, start = started(tmp_path / "x", table(["Himmel"], ["Katze [red]"]))
    start.show()
    shown = capsys.readouterr()
    assert "warning: no category has the name" in shown.err and "Himmel, Katze [red]" in shown.out


def test_averaged_weights_are_taken_where_there_are_some(tmp_path: Path) -> None:
    written(tmp_path / "x", table(*BASE))
    checkpoint = load(tmp_path / "x")
    average = {name: tensor + 1 for name, tensor in checkpoint.model.items()}
    save(tmp_path / "x", checkpoint._replace(ema=average))
    own = table(["sky"], ["cat"])
    made = started(tmp_path / "x", own)[1].state_dict()
    assert torch.equal(made["rpn.conv.weight"], average["rpn.conv.weight"])
    assert torch.equal(made["semantic_head.score.weight"][0], average["semantic_head.score.weight"][0])


# What the network then says


@pytest.mark.parametrize("model", [{}, {"conventions": "upsnet"}, PANOPTIC_FPN], ids=["ours", "upsnet", "fpn"])
def test_a_permuted_table_gives_the_same_picture(tmp_path: Path, model: dict[str, Any]) -> None:
    """Every pixel has a segment of the same name, score and box; only the numbers of the classes are others."""
    theirs = table(*BASE)
    own = table(["sand", "sky", "sea"], ["boat", "cat", "dog"], first_id=50)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    images[0, :32] //= 4
    images[1, :, 40:, 0] = 250
    sizes, scales = torch.tensor([[64, 96], [50, 96]], dtype=torch.int32), torch.ones(2)
    source = written(tmp_path / "x", theirs, **model)
    made = started(tmp_path / "x", own, **model)[1]
    with torch.no_grad():
        (map_a, segments_a, _), (map_b, segments_b, _) = (net(images, sizes, scales) for net in (source, made))
    seen = set()
    for image in range(2):
        for value in map_a[image].unique().tolist():
            inside = map_a[image] == value
            other = int(map_b[image][inside][0])
            assert torch.equal(map_b[image] == other, inside) and (other == 0) == (value == 0)
            if value:
                a, b = segments_a[image, value - 1], segments_b[image, other - 1]
                assert theirs[int(a[0])].name == own[int(b[0])].name
                torch.testing.assert_close(a[1:], b[1:])
                seen.add(own[int(b[0])].name)
    assert len(seen & set(BASE[0])) > 1 and len(seen & set(BASE[1])) > 1, "too little is seen to be sure"


def test_kept_classes_say_the_same_beside_new_ones(tmp_path: Path) -> None:
    """Box and mask logits, deltas and semantic logits of a class depend on its own rows."""
    theirs, own = table(*BASE), table(["sea"], ["ant", "dog"])
    source = written(tmp_path / "x", theirs)
    made = started(tmp_path / "x", own)[1]
    x = torch.randn(5, 16, 7, 7)
    with torch.no_grad():
        (logits, deltas), (others, other_deltas) = source.box_head(x), made.box_head(x)
        pyramid, sizes = [torch.randn(1, 16, 32 >> i, 32 >> i) for i in range(4)], torch.tensor([[128, 128]])
        semantic, other_semantic = source.semantic_head(pyramid, sizes), made.semantic_head(pyramid, sizes)
    torch.testing.assert_close(others[:, [0, 2]], logits[:, [0, 2]])
    torch.testing.assert_close(other_deltas[:, [0, 2]], deltas[:, [0, 2]])
    torch.testing.assert_close(other_semantic[:, [0, 2]], semantic[:, [1, 4]])


# Names


def test_names_that_people_write_in_two_ways() -> None:
    theirs = table(["traffic_light", "Sky", "e\u0301tang"], ["dining table"])
    own = table(["sky", "traffic-light", "\u00e9tang"], ["Dining  Table"])
    assert by_name(own, theirs) == {0: 1, 1: 0, 2: 2, 3: 3}
    assert by_name(table([], ["diningtable"]), theirs) == {}


def test_the_exact_name_and_the_same_kind_come_first() -> None:
    assert by_name(table(["Sky", "sky"], []), table(["sky"], [])) == {1: 0}
    assert by_name(table(["sky"], []), table(["SKY", "sky"], [])) == {0: 1}
    both = table(["person"], ["person"])
    assert by_name(both, table([], ["person"])) == {1: 0}
    assert by_name(both, both) == {0: 0, 1: 1}
    assert by_name(table(["Person"], []), table(["person"], ["Person"])) == {0: 0}


def test_one_name_for_several_categories() -> None:
    twice = table(["other", "other", "sky"], [])
    assert by_name(twice, twice) == {0: 0, 1: 1, 2: 2}  # their ids tell them apart
    for own, theirs in (
        (twice, table(["sky", "Other"], [], first_id=5)),
        (table(["other"], [], first_id=9), twice),
        (twice, table(["other"] * 3, [], 9)),
    ):
        with pytest.raises(InputError, match="categories 1 'other' and 2 'other' have one name"):
            by_name(own, theirs)


def test_an_ambiguous_name_names_both_files_and_the_cure(tmp_path: Path) -> None:
    written(tmp_path / "x", table(["other"], ["cat"], first_id=5))
    message = refusal(tmp_path / "x", table(["Other", "OTHER"], ["cat"]))
    assert "1 'Other' and 2 'OTHER'" in message and "train.json" in message and "--classes new" in message


# Refusals


def test_exact_names_the_categories_that_differ(tmp_path: Path) -> None:
    written(tmp_path / "x", table(*BASE))
    message = refusal(tmp_path / "x", table(["sky", "sea", "sand"], ["cat", "dog", "ship", "star"]), "exact")
    for expected in ("103 'ship' (thing) in", "'boat' (thing) in the checkpoint", "104 'star' only in", "by-name"):
        assert expected in message
    many = refusal(tmp_path / "x", table([str(i) for i in range(30)], []), "exact")
    assert many.count(" only in ") + many.count(" in the checkpoint") < 10 and "and 28 more" in many
    colours = [entry | {"color": [1, 2, i]} for i, entry in enumerate(table(*BASE).to_coco())]
    assert started(tmp_path / "x", Categories.from_coco(colours), "exact")[2].same_categories


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ({"fpn": {"channels": 24}}, ["model.fpn.channels (16 against 24)"]),
        ({"fpn": {"channels": 16, "norm": "group"}}, ["model.fpn.norm (none against group)"]),
        (
            {"box_head": {"hidden": 32, "samples": 64}, "mask_head": {"channels": 16, "layers": 2}},
            ["model.box_head.hidden (16 against 32)", "model.mask_head.layers (1 against 2)"],
        ),
        ({"semantic_head": {"channels": [8, 16]}}, ["model.semantic_head.channels ([16] against [8, 16])"]),
        ({"backbone": {"kind": "timm", "name": "resnet18"}}, ["model.backbone.kind (hybrid against timm)"]),
    ],
)
def test_another_network_is_refused_with_the_keys_to_set(
    tmp_path: Path, model: dict[str, Any], keys: list[str]
) -> None:
    written(tmp_path / "x", table(*BASE))
    message = refusal(tmp_path / "x", table(["sky"], ["cat"]), **model)
    assert message.endswith(f"it against yours: {', '.join(keys)}")
    assert message.count(" there and ") <= 3 and len(message) < 700


def test_another_network_with_the_same_configuration(tmp_path: Path) -> None:
    written(tmp_path / "x", table(*BASE))
    checkpoint = load(tmp_path / "x")
    weights = dict(checkpoint.model)
    weights["rpn.more.weight"], weights["box_head.deltas.bias"] = torch.zeros(2), torch.zeros(7)
    del weights["rpn.conv.weight"]
    save(tmp_path / "x", checkpoint._replace(model=weights))
    message = refusal(tmp_path / "x", table(*BASE))
    for expected in (
        "rpn.conv.weight is absent there and [16, 16, 3, 3] here",
        "rpn.more.weight is [2] there and absent here",
        "box_head.deltas.bias is [7] there and [16] here",
        "use the version of upsnet-trt that wrote it",
    ):
        assert expected in message


# One kind of categories


def test_things_and_no_things(tmp_path: Path) -> None:
    """A table of stuff alone takes what fits of a network with things, and the reverse."""
    written(tmp_path / "both", table(*BASE))
    for own in (table(["sand", "sky"], []), table([], ["boat"])):
        start = started(tmp_path / "both", own)[2]
        assert start.kept == own.names and not start.heads_anew


def test_a_network_without_heads_for_things(tmp_path: Path) -> None:
    stuff = table(["sky", "sea"], [])
    made = written(tmp_path / "x", stuff)
    checkpoint = load(tmp_path / "x")
    lean = {name: each for name, each in checkpoint.model.items() if not name.startswith(("rpn", "box_", "mask_"))}
    save(tmp_path / "x", checkpoint._replace(model=lean))
    fresh, after, start = started(tmp_path / "x", table(["sea"], ["cat"]))
    assert start.heads_anew == ["rpn", "box_head", "mask_head"] and "start anew" in start.source
    assert torch.equal(after.rpn.conv.weight, fresh.rpn.conv.weight)
    assert torch.equal(after.semantic_head.score.weight[0], made.semantic_head.score.weight[1])
    save(tmp_path / "x", checkpoint._replace(model=lean, categories=table(["sky"], ["sea"])))
    assert "rpn.conv.weight is absent there" in refusal(tmp_path / "x", table(*BASE))


def test_the_background_of_the_semantic_head_is_that_of_networks_without_stuff() -> None:
    def head(rows: int, value: float) -> dict[str, Tensor]:
        return {"semantic_head.score.bias": torch.arange(rows) + value}

    def taken(own: tuple[int, int], given: tuple[int, int], pairs: dict[int, int]) -> list[float]:
        tensors = (head(max(1, stuff) + things, value) for (stuff, things), value in ((own, 0.0), (given, 0.5)))
        first, second = tensors
        state = take_classes(first, second, pairs, Counts(*own), Counts(*given))
        assert first["semantic_head.score.bias"][0] == 0 and second["semantic_head.score.bias"][0] == 0.5
        return state["semantic_head.score.bias"].tolist()

    assert taken((0, 2), (0, 2), {0: 1}) == [0.5, 2.5, 2]
    assert taken((0, 2), (0, 2), {}) == [0, 1, 2]
    assert taken((0, 2), (3, 2), {0: 4, 1: 0}) == [0, 4.5, 0.5]
    assert taken((1, 2), (0, 2), {0: 1, 2: 0}) == [2.5, 1, 1.5]


# Runs


def recoloured(shapes: Path, out: Path, **names: str) -> Path:
    """The data set in other colours, with other names for some categories."""
    shutil.copytree(shapes, out)
    for split in ("train", "val"):
        content = json.loads((out / f"{split}.json").read_text())
        for index, entry in enumerate(content["categories"]):
            entry |= {"color": [1, 2, index], "name": names.get(entry["name"], entry["name"])}
        (out / f"{split}.json").write_text(json.dumps(content))
    return out


def test_a_run_goes_on_in_other_colours(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(settings(shapes, iterations=1), out, "cpu", tiny()) == 0
    assert train(settings(recoloured(shapes, tmp_path / "colours"), iterations=2), out, "cpu", tiny()) == 0
    last = load(out / "last.safetensors")
    assert last.step == 2 and {category.color[:2] for category in last.categories} == {(1, 2)}
    with pytest.raises(InputError, match=r"'disk' \(thing\) in the run; give another folder .* and --init"):
        train(settings(recoloured(shapes, tmp_path / "names", disk="hoop"), iterations=3), out, "cpu", tiny())


def test_a_fine_tuned_run(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder says what it started from; a second start goes on; the same seed draws the same new rows."""
    written(tmp_path / "x.safetensors", table(["checks", "dots"], ["hoop", "disk"]))
    config = settings(shapes, model=SMALL, iterations=1, evaluate_every=0)
    for name in ("a", "b"):
        torch.manual_seed(len(name) + 5)
        assert train(config, tmp_path / name, "cpu", init=tmp_path / "x.safetensors") == 0
    shown = capsys.readouterr().out
    assert "start anew" in shown and "hoop" in shown
    record = json.loads((tmp_path / "a" / "init.json").read_text())
    assert record["kept"] == ["checks", "dots", "disk"] and record["dropped"] == ["hoop"]
    assert record["classes"] == "by-name" and record["checkpoint"] == str(tmp_path / "x.safetensors")
    ours, again = load(tmp_path / "a" / "last.safetensors"), load(tmp_path / "b" / "last.safetensors")
    assert all(torch.equal(tensor, again.model[name]) for name, tensor in ours.model.items())
    longer = settings(shapes, model=SMALL, iterations=2, evaluate_every=0)
    assert train(longer, tmp_path / "a", "cpu", init=tmp_path / "gone.safetensors") == 0
    assert "gone.safetensors is for a new run, and is not read" in capsys.readouterr().out
    assert (tmp_path / "a" / "init.json").exists()
    (tmp_path / "b" / "last.safetensors").unlink()
    assert train(config, tmp_path / "b", "cpu") == 0
    assert not (tmp_path / "b" / "init.json").exists()
