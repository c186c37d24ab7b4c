"""The training loop on a tiny network: its folder, interruptions, refusals. One test trains the real network."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.tiny_network import (
    SMALL,
    Losses,
    TinyNetwork,
    assert_same_run,
    metrics,
    sends_signal,
    settings,
    tiny,
)
from training.checkpoint import load, load_model, save
from training.config import load_config
from training.distributed import Process
from training.loop import Run, train
from training.schedule import Plan, make_plan
from training.signals import stop_signals
from training.step import TrainingError, step_seed
from upsnet.categories import Categories
from upsnet.datasets.shapes import write_shapes
from upsnet.errors import InputError


def test_the_folder_of_a_run(unbroken: Path, shapes: Path) -> None:
    made_it, results = (
        {"config.yaml", "plan.json", "versions.json", "data_check.json"},
        {"metrics.jsonl", "evaluations.jsonl", "training.html", "tb"},
    )
    files = made_it | results | {"last.safetensors", "best.safetensors"}
    assert files == set(os.listdir(unbroken))
    assert load_config(unbroken / "config.yaml") == settings(shapes)
    assert Plan.model_validate_json((unbroken / "plan.json").read_text()) == make_plan(settings(shapes).schedule, 1)
    made_with = json.loads((unbroken / "versions.json").read_text())
    assert (made_with["processes"], made_with["device"]) == (1, "cpu") and {"torch", "commit"} <= made_with.keys()
    raw = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert all({"images_per_second", "data_share"} <= set(line) for line in raw if "loss" in line)
    assert all(0 <= line["data_share"] <= 1 for line in raw if "loss" in line)
    assert list((unbroken / "tb").glob("events.*"))
    lines = metrics(unbroken)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(line["loss"] == pytest.approx(line["semantic"] + line["noise"], rel=1e-6) for line in steps)
    assert [line["lr"] for line in steps[:5]] == pytest.approx([0.01, 0.0325, 0.055, 0.0775, 0.1])
    assert len({line["noise"] for line in steps}) == 12
    evaluations = [line for line in lines if "pq" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert set(evaluations[0]) == {"step", "pq", "pq_things", "pq_stuff"}
    last, best = load(unbroken / "last.safetensors"), load(unbroken / "best.safetensors")
    assert last.step == 12
    assert last.best_pq == best.best_pq == max(line["pq"] for line in evaluations)
    assert best.optimizer == {}
    assert last.optimizer.keys() == {"conv.weight.momentum_buffer", "conv.bias.momentum_buffer"}
    assert all(line["grad_norm"] > 0 for line in steps)


def test_tensorboard_has_figures_and_pictures(unbroken: Path) -> None:
    board = EventAccumulator(str(unbroken / "tb"))
    board.Reload()
    scalars = {"train/loss", "train/lr", "train/semantic", "train/grad_norm", "val/pq", "speed/data_share"}
    assert scalars <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("val/pq")] == [6, 12]
    assert len(board.Tags()["images"]) == 3
    picture = board.Images(board.Tags()["images"][0])[0]
    assert picture.width == 2 * 320  # the prediction beside the truth, enlarged to be legible


def test_best_checkpoint_is_that_of_the_best_evaluation(shapes: Path, tmp_path: Path) -> None:
    qualities = iter([0.3, 0.5, None, 0.4])
    task = tiny()._replace(quality=lambda *_: {"pq": next(qualities)})
    assert train(settings(shapes, evaluate_every=3), tmp_path, "cpu", task) == 0
    assert [line["pq"] for line in metrics(tmp_path) if "pq" in line] == [0.3, 0.5, None, 0.4]
    best = load(tmp_path / "best.safetensors")
    assert (best.step, best.best_pq, load(tmp_path / "last.safetensors").best_pq) == (6, 0.5, 0.5)


def test_learns(shapes: Path, tmp_path: Path) -> None:
    config = settings(shapes, iterations=20, images_per_step=6, evaluate_every=0, log_every=19, warmup=0, lr=0.5)
    assert train(config, tmp_path, "cpu", tiny(noise=False)) == 0
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 2  # step 19, and the last
    assert losses[-1] < 0.85 * math.log(8)
    assert not (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize("call", [1, 4, 6, 7])
def test_stopped_by_sigterm_goes_on_as_if_nothing_had_been(
    unbroken: Path, shapes: Path, tmp_path: Path, call: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert train(settings(shapes), tmp_path, "cpu", tiny(accident=sends_signal(signal.SIGTERM, call))) == 15
    assert signal.getsignal(signal.SIGTERM) is before
    assert load(tmp_path / "last.safetensors").step == call
    torch.manual_seed(99)  # the outer random state must not matter
    assert train(settings(shapes), tmp_path, "cpu", tiny()) == 0
    assert_same_run(tmp_path, unbroken)


def test_killed_before_the_first_checkpoint_starts_anew(unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    def fails(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call == 3:
            raise MemoryError
        return losses

    with pytest.raises(MemoryError):
        train(settings(shapes), tmp_path, "cpu", tiny(accident=fails))
    assert len(metrics(tmp_path)) == 2
    assert not (tmp_path / "last.safetensors").exists()
    assert train(settings(shapes), tmp_path, "cpu", tiny()) == 0
    assert_same_run(tmp_path, unbroken)


def test_workers_make_no_difference(unbroken: Path, shapes: Path, tmp_path: Path) -> None:
    assert train(settings(shapes, data={"workers": 1}), tmp_path, "cpu", tiny()) == 0
    assert metrics(tmp_path) == metrics(unbroken)


def test_finished_run_says_so_and_more_iterations_continue_it(
    unbroken: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(settings(shapes, iterations=8), tmp_path, "cpu", tiny()) == 0
    before = (tmp_path / "last.safetensors").read_bytes()
    assert train(settings(shapes, iterations=8), tmp_path, "cpu", tiny()) == 0
    assert "finished already at step 8" in capsys.readouterr().out
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert train(settings(shapes), tmp_path, "cpu", tiny()) == 0
    losses = [[line for line in metrics(out) if "loss" in line] for out in (tmp_path, unbroken)]
    assert losses[0] == losses[1]


def test_another_configuration_is_refused_with_every_key(shapes: Path, tmp_path: Path) -> None:
    train(settings(shapes, iterations=1), tmp_path, "cpu", tiny())
    before = (tmp_path / "last.safetensors").read_bytes()
    other = settings(shapes, model={"fpn": {"channels": 64}}, lr=0.2, clip_norm=1.0, iterations=20)
    with pytest.raises(InputError) as caught:
        train(other, tmp_path, "cpu", tiny())
    message = str(caught.value)
    for expected in (
        "last.safetensors",
        "model.fpn.channels (256 against 64)",
        "schedule.lr (0.1 against 0.2)",
        "schedule.clip_norm (None against 1.0)",
        "--out",
    ):
        assert expected in message
    assert "iterations" not in message
    assert "\n" not in message
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_checkpoint_without_optimizer_is_no_place_to_go_on_from(shapes: Path, tmp_path: Path) -> None:
    train(settings(shapes, iterations=1, evaluate_every=1), tmp_path, "cpu", tiny())
    (tmp_path / "best.safetensors").rename(tmp_path / "last.safetensors")
    with pytest.raises(InputError, match="no optimizer state"):
        train(settings(shapes, iterations=2, evaluate_every=1), tmp_path, "cpu", tiny())


def nan_loss(losses: Losses, model: TinyNetwork) -> Losses:
    return losses | {"semantic": losses["semantic"] * math.nan}


def opposite_infinities(losses: Losses, model: TinyNetwork) -> Losses:
    return losses | {"a": losses["semantic"] / 0, "b": -losses["semantic"] / 0}


def nan_gradient(losses: Losses, model: TinyNetwork) -> Losses:
    return losses | {"root": (model.conv.weight * 0).sqrt().sum()}


@pytest.mark.parametrize("fault", [nan_loss, opposite_infinities, nan_gradient])
def test_non_finite_numbers_stop_the_run(shapes: Path, tmp_path: Path, fault: Any) -> None:
    good: dict[str, Any] = {}

    def accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call < 6:
            return losses
        good.update({path.name: path.read_bytes() for path in tmp_path.glob("[!.]*.*")})
        return fault(losses, model)

    with pytest.raises(TrainingError) as caught:
        train(settings(shapes), tmp_path, "cpu", tiny(accident=accident))
    message = str(caught.value)
    assert message.startswith("step 6: not finite: loss ")
    assert "\n" not in message
    assert "semantic" in message
    assert "noise" in message
    assert re.search(r"images \d+, \d+;", message)
    assert load(tmp_path / "last.safetensors").step == 4
    assert {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*.*")} == good


def test_non_finite_weights_are_not_saved(shapes: Path, tmp_path: Path) -> None:
    def accident(call: int, losses: Losses, model: TinyNetwork) -> Losses:
        if call == 8:
            model.register_buffer("statistic", torch.tensor([1.0, math.inf]))
        return losses

    with pytest.raises(TrainingError, match=r"step 8: weights not finite: statistic; last\.safetensors is from before"):
        train(settings(shapes), tmp_path, "cpu", tiny(accident=accident))
    assert load(tmp_path / "last.safetensors").step == 6


@pytest.mark.parametrize("part", ["ema", "optimizer"])
def test_an_average_or_a_momentum_that_is_not_finite_is_not_saved_either(
    shapes: Path, tmp_path: Path, part: str
) -> None:
    run = Run(settings(shapes, ema=0.9), tmp_path, Process(0, 1, torch.device("cpu")), tiny())
    assert run.stepper.ema
    tensor = run.stepper.ema.module.conv.bias if part == "ema" else next(iter(run.stepper.optimizer.state.values()))
    with torch.no_grad():
        (tensor if isinstance(tensor, torch.Tensor) else tensor["momentum_buffer"]).view(-1)[0] = math.inf
    with pytest.raises(TrainingError, match=rf"step 0: weights not finite: {part}\.conv\.\w+(\.momentum_buffer)?; "):
        run.save("last.safetensors")
    assert not list(tmp_path.glob("*last*"))


RUN_AWAY: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 1e6},
    {"optimizer": "adamw", "lr": 1e25, "ema": 0.9, "evaluate_every": 1},
    {"optimizer": "adamw", "lr": 1e300, "warmup": 9, "policy": "cosine", "images_per_gpu": 1, "clip_norm": 1.0},
    {"optimizer": "sgd", "lr": 1e6, "precision": "fp16"},
]


@pytest.mark.parametrize("options", RUN_AWAY, ids=str)
def test_a_learning_rate_far_too_high_names_the_step_and_the_images(
    shapes: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The real network. Where only the evaluation meets what the step has made, its figures are bad ones."""
    precision = options.get("precision", "fp32")
    plain = SMALL | {"semantic_head": {"channels": [16], "deformable": False}}
    rest = {key: value for key, value in options.items() if key != "precision"}
    config = settings(
        shapes,
        model=plain if precision != "fp32" else SMALL,
        compute={"precision": precision},
        **{"warmup": 0, "evaluate_every": 0, **rest},
    )
    with pytest.raises(TrainingError, match=r"^step \d+: not finite: loss .*; images \d+, \d+; .*lower schedule\.lr"):
        train(config, tmp_path, "cpu")


def test_clipping_bounds_the_step(shapes: Path, tmp_path: Path) -> None:
    """SGD without momentum and decay moves the weights by exactly lr * clip_norm where the gradient is longer."""
    config = settings(shapes, iterations=1, clip_norm=1e-3, momentum=0.0, weight_decay=0.0, lr=1.0, warmup=0)
    torch.manual_seed(config.seed)
    start = TinyNetwork(config, Categories.from_coco(json.loads((shapes / "train.json").read_text())["categories"]))
    train(config, tmp_path, "cpu", tiny())
    end = load(tmp_path / "last.safetensors").model
    weight, bias = ((end[f"conv.{n}"] - getattr(start.conv, n)).norm().item() for n in ("weight", "bias"))
    assert math.hypot(weight, bias / 2) == pytest.approx(1e-3, rel=1e-2)  # biases learn at twice the rate


def test_averaged_weights_are_evaluated_and_are_the_best(shapes: Path, tmp_path: Path) -> None:
    assert train(settings(shapes, iterations=6, ema=0.9, evaluate_every=6), tmp_path, "cpu", tiny()) == 0
    last, best = load(tmp_path / "last.safetensors"), load(tmp_path / "best.safetensors")
    assert best.ema == {} and last.ema.keys() == last.model.keys()
    assert all(torch.equal(best.model[name], tensor) for name, tensor in last.ema.items())
    assert not any(torch.equal(best.model[name], tensor) for name, tensor in last.model.items())


def test_a_new_run_starts_from_the_weights_of_a_checkpoint(
    unbroken: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(shapes, iterations=1, lr=1e-9, warmup=0, evaluate_every=0)
    init = unbroken / "best.safetensors"
    assert train(config, tmp_path, "cpu", tiny(), init) == 0
    assert f"starts from {init} (step " in capsys.readouterr().out
    ours, start = load(tmp_path / "last.safetensors"), load(init)
    assert ours.step == 1
    assert all(torch.allclose(ours.model[name], tensor, atol=1e-7) for name, tensor in start.model.items())

    entries = start.categories.to_coco()
    entries[0]["name"] = "ring"
    save(tmp_path / "other", start._replace(categories=Categories.from_coco(entries)))
    with pytest.raises(InputError, match="other: its categories are not those of"):
        train(config, tmp_path / "x", "cpu", tiny(), tmp_path / "other", "exact")
    with pytest.raises(InputError, match=r"another model\.conventions \(ours against upsnet\)"):
        train(settings(shapes, model={"conventions": "upsnet"}), tmp_path / "x", "cpu", tiny(), init)
    assert not (tmp_path / "x").exists()


def test_a_resumed_run_finds_its_data_elsewhere_but_not_other_data(shapes: Path, tmp_path: Path) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved"
    assert train(settings(shapes, iterations=1), out, "cpu", tiny()) == 0
    shutil.copytree(shapes, moved)
    assert train(settings(moved, iterations=2), out, "cpu", tiny()) == 0
    assert load(out / "last.safetensors").step == 2
    content = json.loads((moved / "train.json").read_text())
    for entries, key in ((content["images"], "id"), (content["annotations"], "image_id")):
        entries[0][key] = 999
    (moved / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="its categories or images are not those of"):
        train(settings(moved, iterations=3), out, "cpu", tiny())


def test_a_run_of_an_older_version_is_not_overwritten(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    with pytest.raises(InputError, match=r"last\.pt: a run of an older version"):
        train(settings(shapes), tmp_path, "cpu", tiny())
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_validation_set_of_other_categories(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "val.json").read_text())
    content["categories"][0]["name"] = "ring"
    (tmp_path / "val.json").write_text(json.dumps(content))
    val = settings(shapes).data.val.model_dump() | {"json_file": tmp_path / "val.json"}
    config = settings(shapes, data={"val": val})
    with pytest.raises(InputError, match="ring"):
        train(config, tmp_path / "run", "cpu", tiny())
    assert not (tmp_path / "run").exists()


def test_a_second_signal_is_not_held_back() -> None:
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_torchrun_a_second_signal_is_the_first_one_again() -> None:
    with stop_signals(patient=True) as received:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT, signal.SIGINT]


def test_step_seeds_differ() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1, 2) for step in (0, 1, 999_999) for rank in (0, 1, 1023)}
    assert len(seeds) == 27
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_the_real_network_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    config = settings(shapes, model=SMALL, optimizer="adamw", lr=0.001, clip_norm=5.0, iterations=4, evaluate_every=2)
    assert train(config, tmp_path / "unbroken", "cpu") == 0
    # the same first half, cut off after the checkpoint of step 2 by a schedule that is then raised
    first = config.model_copy(update={"schedule": config.schedule.model_copy(update={"iterations": 2})})
    assert train(first, tmp_path / "resumed", "cpu") == 0
    assert train(config, tmp_path / "resumed", "cpu") == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "unbroken")
    assert set(metrics(tmp_path / "resumed")[0]) > {"loss", "rpn_cls", "rcnn_box", "mask", "semantic", "panoptic"}
    model, *_ = load_model(tmp_path / "resumed" / "best.safetensors")
    assert sum(p.numel() for p in model.parameters()) > 10_000


def test_grouped_images_have_one_shape_a_step(tmp_path: Path) -> None:
    """The photos are squares and portraits, which makes two groups."""
    moved = write_shapes(tmp_path / "data", {"train": 6, "val": 3}, sizes=[(64, 64), (96, 64)], progress=False)
    content = json.loads((moved / "train.json").read_text())
    seen: list[set[tuple[int, int]]] = []
    task = tiny(seen=lambda batch: seen.append({(h, w) for h, w in batch.sizes.tolist()}))
    config = settings(moved, data={"group_aspect_ratio": True}, zoom=(1, 1), iterations=6, evaluate_every=0)
    assert train(config, tmp_path / "run", "cpu", task) == 0
    assert len(seen) == 6 and all(len(sizes) == 1 for sizes in seen) and len(set.union(*seen)) == 2
    del content["images"][0]["width"]
    (moved / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"image \d+ has no width and height, which data.group_aspect_ratio needs"):
        train(config, tmp_path / "other", "cpu", tiny())
    assert not (tmp_path / "other").exists()
