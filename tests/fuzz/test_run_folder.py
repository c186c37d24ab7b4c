"""A run's folder as a full disk, a flipped bit, an editor or another version leaves it, and all that opens one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from eval.report import training_charts
from tests.conftest import CATEGORIES
from tests.fuzz.mutations import damaged, dump, fuzzed, mutated, refused
from tests.serving.conftest import Exported
from tests.training.tiny_network import SMALL, settings
from training.checkpoint import VALUES, Checkpoint, digest, load, load_model, save, versions
from training.config import dump_config
from training.log import lines_until
from training.model.upsnet import UPSNet
from upsnet.categories import Categories
from upsnet.contract import METADATA_KEY
from upsnet.datasets.validation_set import open_dataset
from upsnet.errors import InputError
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.open import find_model, open_source
from upsnet.runtimes.options import RuntimeOptions

CONFIG = settings(Path("data"), model=SMALL)
TABLE = Categories.from_coco(CATEGORIES)
LINES = [{"step": 1, "loss": 1.5, "lr": 0.1}, {"step": 2, "pq": 0.5}, {"step": 3, "loss": 1.0, "grad_norm": None}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = UPSNet(CONFIG.model, TABLE.num_stuff, TABLE.num_things)
    save(folder / "good", Checkpoint(CONFIG, TABLE, 3, 0.5, model.state_dict(), {}, versions()))
    return folder


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> bytes:
    return (run / "good").read_bytes()


def open_checkpoint(path: Path) -> None:
    with refused(str(path)):
        load_model(path)
    with refused(str(path.parent)):
        open_source(RuntimeOptions(path.parent, "pytorch")).close()


@fuzzed(60)
@given(st.data())
def test_damaged_checkpoint(run: Path, checkpoint: bytes, data: st.DataObject) -> None:
    header = int.from_bytes(checkpoint[:8], "little") + 8
    content = data.draw(
        st.one_of(damaged(checkpoint[:header]).map(lambda cut: cut + checkpoint[header:]), damaged(checkpoint))
    )
    (run / "last.safetensors").write_bytes(content)
    open_checkpoint(run / "last.safetensors")


@fuzzed(60)
@given(st.integers(0, 2**64 - 1), st.binary(max_size=64))
def test_absurd_headers(run: Path, size: int, rest: bytes) -> None:
    (run / "last.safetensors").write_bytes(size.to_bytes(8, "little") + rest)
    open_checkpoint(run / "last.safetensors")


@pytest.fixture(scope="module")
def values(run: Path) -> dict[str, Any]:
    good = load(run / "good")
    values = {name: getattr(good, name) for name in VALUES}
    return values | {"config": good.config.model_dump(mode="json"), "categories": good.categories.to_coco()}


@fuzzed(40)
@given(st.data())
def test_checkpoint_of_another_version(run: Path, values: dict[str, Any], data: st.DataObject) -> None:
    """Its SHA-256 is right, and what it says is not what this version writes."""
    changed = data.draw(mutated(values))
    texts = {name: dump(value).encode(errors="replace").decode() for name, value in changed.items()}
    metadata = {"format": "upsnet-trt checkpoint", "format_version": "2"} | texts
    tensors = {f"model.{name}": tensor for name, tensor in load(run / "good").model.items()}
    try:
        save_file(tensors, run / "last.safetensors", metadata | {"sha256": digest(tensors, metadata)})
    except (SafetensorError, UnicodeError):
        return  # no such file can be
    open_checkpoint(run / "last.safetensors")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    exported = Exported(tmp_path_factory.mktemp("exported"))
    model = onnx.load(exported.model)
    onnx.helper.set_model_props(model, {METADATA_KEY: exported.manifest.model_dump_json()})
    return model


@fuzzed(60)
@given(st.data())
def test_damaged_onnx(run: Path, graph: onnx.ModelProto, data: st.DataObject) -> None:
    (run / "model.onnx").write_bytes(data.draw(damaged(graph.SerializeToString())))
    with refused(str(run / "model.onnx")):
        OnnxRuntimePredictor(run / "model.onnx").close()


@pytest.mark.parametrize("kind", ["input", "output"])
def test_onnx_of_another_version(tmp_path: Path, graph: onnx.ModelProto, kind: str) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    graph_of = other.graph
    if kind == "input":
        graph_of.input.append(onnx.helper.make_tensor_value_info("masks", onnx.TensorProto.FLOAT, [1]))
    else:
        del graph_of.output[-1]
    onnx.save(other, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"model.onnx: not a graph of this version .*; export it again"):
        OnnxRuntimePredictor(tmp_path / "model.onnx")


@fuzzed(50)
@given(st.one_of(mutated(CONFIG.model_dump(mode="json")).map(dump), damaged(dump_config(CONFIG).encode())))
def test_configuration_of_a_run(run: Path, content: str | bytes) -> None:
    encoded = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    (run / "config.yaml").write_bytes(encoded)
    with refused(""):
        open_dataset(None, run=run)


@fuzzed(50)
@given(
    st.one_of(
        mutated(LINES).map(
            lambda lines: "\n".join(dump(each) for each in lines).encode() if isinstance(lines, list) else b"0\n"
        ),
        damaged("".join(json.dumps(each) + "\n" for each in LINES).encode()),
    )
)
def test_metrics_of_a_run(run: Path, content: bytes) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(content)
    with refused(str(path)):
        training_charts(path)
    with refused(str(path)):
        lines_until(path, 3, True)


def test_files_that_are_folders(run: Path, tmp_path: Path) -> None:
    for name in ("last.safetensors", "model.onnx", "config.yaml", "metrics.jsonl"):
        (tmp_path / name).mkdir()
    with refused(str(tmp_path)):
        find_model(tmp_path)
    open_checkpoint(tmp_path / "last.safetensors")
    with refused(str(tmp_path)):
        open_dataset(None, run=tmp_path)
    with refused(str(tmp_path)):
        training_charts(tmp_path / "metrics.jsonl")
    with refused(str(tmp_path)):
        lines_until(tmp_path / "metrics.jsonl", 3, True)
