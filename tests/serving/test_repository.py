"""The repository's files: two configurations with one contract, the model's code, and deploying into it."""

from __future__ import annotations

import errno
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import serving.deploy
import serving.serve
from serving.repository import TEMPLATE, deploy, deploy_engine, latest_version
from serving.server import TritonServer
from tests.serving.conftest import Exported, make_request
from upsnet.categories import Category
from upsnet.command_line.command import make_app
from upsnet.contract import METADATA_KEY, PLUGINS
from upsnet.errors import InputError
from upsnet.manifest import Manifest
from upsnet.runtimes.triton import TritonPredictor


def config(name: str, repository: Path = TEMPLATE) -> Any:
    reason = "needs tritonclient (pip install 'upsnet-trt[triton]')"
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=reason)
    return text_format.Parse((repository / "upsnet" / name).read_text(), messages.ModelConfig())


def test_both_configurations_have_the_graphs_contract() -> None:
    gpu, cpu = config("config.pbtxt"), config("configs/cpu.pbtxt")
    assert (gpu.platform, cpu.backend) == ("tensorrt_plan", "python")
    for each in (gpu, cpu):
        assert each.name == "upsnet"
        assert each.max_batch_size == 4
        assert [
            (
                t.name,
                each.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[t.data_type].name,
                list(t.dims),
                t.HasField("reshape"),
            )
            for t in [*each.input, *each.output]
        ] == [
            ("images", "TYPE_UINT8", [-1, -1, 3], False),
            ("sizes", "TYPE_INT32", [2], False),
            ("scales", "TYPE_FP32", [1], True),
            ("panoptic", "TYPE_UINT8", [-1, -1], False),
            ("segments", "TYPE_FP32", [-1, 7], False),
            ("segment_count", "TYPE_INT32", [1], True),
        ]
        assert each.HasField("dynamic_batching")
        assert not each.dynamic_batching.HasField("default_queue_policy")
        assert not each.dynamic_batching.priority_levels


def test_deploy_replaces_the_model(exported: Exported, repository: Path) -> None:
    version = latest_version(repository)
    for name in ("model.onnx", "manifest.json"):
        (version / name).write_text("old")
    deploy(exported.model, exported.manifest_path, repository)
    assert (version / "model.onnx").read_bytes() == exported.model.read_bytes()
    assert (version / "manifest.json").read_bytes() == exported.manifest_path.read_bytes()
    assert sorted(path.name for path in version.iterdir()) == ["manifest.json", "model.onnx", "model.py"]
    assert not (version / "model.onnx").samefile(exported.model)


def test_deploy_engine_brings_its_plan_and_plugins_and_leaves_no_other(
    exported: Exported, repository: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(exported.model.parent, engine)
    (engine / "model.plan").write_bytes(b"plan")
    (engine / "libupsnet_plugins.so").write_bytes(b"plugins")
    deploy_engine(engine, repository)
    plan, plugins = (latest_version(repository) / name for name in ("model.plan", "libupsnet_plugins.so"))
    assert (plan.read_bytes(), plugins.read_bytes()) == (b"plan", b"plugins")
    (engine / "model.plan").unlink()
    deploy_engine(engine, repository)
    assert not plan.exists() and not plugins.exists(), "the plan of another engine must not be served"


def test_configuration_names_the_plugins_where_deploying_puts_them() -> None:
    option = f"--backend-config=tensorrt,plugins=REPOSITORY/upsnet/1/{PLUGINS}"
    assert option in (TEMPLATE / "upsnet/config.pbtxt").read_text()


def test_deploy_refuses_a_manifest_of_another_model(exported: Exported, repository: Path, tmp_path: Path) -> None:
    before = (latest_version(repository) / "model.onnx").read_bytes()
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another")
    with pytest.raises(InputError, match=r"manifest.json belongs to another model than .*other.onnx"):
        deploy(other, exported.manifest_path, repository)
    assert (latest_version(repository) / "model.onnx").read_bytes() == before


def test_deploy_names_what_is_missing(exported: Exported, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model .*gone.onnx; make one with `make engine`"):
        deploy(tmp_path / "gone.onnx", exported.manifest_path, repository)
    with pytest.raises(InputError, match=r"gone.json"):
        deploy(exported.model, tmp_path / "gone.json", tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").glob("*"))
    for folder in (TEMPLATE, TEMPLATE / "upsnet", TEMPLATE / "new"):
        with pytest.raises(InputError, match=r"is the template"):
            deploy(exported.model, exported.manifest_path, folder)


def test_deploying_is_repeatable(exported: Exported, tmp_path: Path) -> None:
    for _ in range(2):
        deploy(exported.model, exported.manifest_path, tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 5


def test_latest_version_counts_as_numbers(tmp_path: Path) -> None:
    for name in ("2", "10", "9", "configs"):
        (tmp_path / "upsnet" / name).mkdir(parents=True)
    assert latest_version(tmp_path).name == "10"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_deployment_that_fails_changes_nothing(
    exported: Exported, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (latest_version(repository) / "model.plan").write_text("of the model that is there")
    before = contents(repository)
    with pytest.raises(InputError, match=r"repository: cannot be written: No such file or directory"):
        deploy(exported.model, exported.manifest_path, repository, [tmp_path / "gone.so"])

    def full(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"repository: cannot be written: No space left on device"):
        deploy(exported.model, exported.manifest_path, repository)
    assert contents(repository) == before
    assert not list(repository.glob(".*"))


def test_deploying_into_an_empty_folder_of_the_models_name(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "upsnet").mkdir()
    assert latest_version(deploy(exported.model, exported.manifest_path, tmp_path)).name == "1"


HOSTILE = [
    'a "quoted" one',
    "back\\slash\\",
    "two\nlines\tand a tab",
    "naïve 猫 🐈",
    '" } } parameters { key: "threads" value: { string_value: "x',
    "'single' # no comment",
    "\u2028\x7f\x01",
]


@pytest.fixture
def hostile(exported: Exported, tmp_path: Path) -> Manifest:
    """A manifest, also in hostile.json, of categories that need quoting."""
    things = [Category(id=3 + i, name=name, isthing=True, color=(i, 0, 0)) for i, name in enumerate(HOSTILE)]
    categories = [exported.manifest.categories[0], *things]
    manifest = exported.manifest.model_copy(update={"name": HOSTILE[4], "categories": categories})
    manifest.save(tmp_path / "hostile.json")
    return manifest


@pytest.mark.parametrize("name", ["config.pbtxt", "configs/cpu.pbtxt"])
def test_the_configuration_carries_the_manifest_whatever_the_names(
    exported: Exported, hostile: Manifest, tmp_path: Path, name: str
) -> None:
    repository = deploy(exported.model, tmp_path / "hostile.json", tmp_path / "repository")
    given, made = config(name), config(name, repository)
    carried = made.parameters.pop(METADATA_KEY).string_value
    assert Manifest.model_validate_json(carried) == hostile
    assert made == given


@pytest.mark.triton
def test_a_live_server_tells_hostile_names_and_keeps_them_when_another_model_is_deployed(
    exported: Exported,
    hostile: Manifest,
    triton_environment: Path,
    tmp_path: Path,
) -> None:
    place = tmp_path / "a model repository"
    request = make_request(1, 32, 64)
    with TritonServer(
        deploy(exported.model, tmp_path / "hostile.json", place), environment=triton_environment
    ) as server:
        for _ in range(2):
            predictor = TritonPredictor(server.url)
            assert predictor.manifest == hostile
            np.testing.assert_array_equal(predictor.predict(request).panoptic, exported.predict(request).panoptic)
            predictor.close()
            deploy(exported.model, exported.manifest_path, place)
    with TritonServer(place, environment=triton_environment) as server:
        predictor = TritonPredictor(server.url)
        assert predictor.manifest == exported.manifest
        predictor.close()


def run_command(main: Callable[..., None], *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(make_app(main), list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_commands_make_the_repository_beside_the_run_and_leave_the_template(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSNET_TRITON_ENV", str(tmp_path / "nothing"))
    run, template = tmp_path / "a run", contents(TEMPLATE)
    shutil.copytree(exported.model.parent, run / "engine")
    code, stdout, _ = run_command(serving.deploy.main, "--run", str(run))
    assert code == 0
    assert f"--repository '{run / 'triton_repo'}'" in stdout and stdout.count("\n") == 1
    assert latest_version(run / "triton_repo").name == "1"
    code, _, stderr = run_command(serving.serve.main, "--run", str(run), "--repository", str(tmp_path / "elsewhere"))
    assert code == 2
    assert re.fullmatch(r"error: the server's environment .*/nothing is missing or broken; .*\n", stderr)
    assert contents(tmp_path / "elsewhere") == contents(run / "triton_repo")
    assert contents(TEMPLATE) == template


def test_commands_refuse_in_one_line(tmp_path: Path) -> None:
    for main, arguments, said in (
        (serving.serve.main, (), "nothing to serve: give --run, for instance runs/demo, or --repository"),
        (
            serving.serve.main,
            ("--run", str(tmp_path)),
            f"there is no model {tmp_path}/engine/model.onnx; make one with",
        ),
        (
            serving.deploy.main,
            ("--run", str(tmp_path)),
            f"there is no model {tmp_path}/engine/model.onnx; make one with",
        ),
    ):
        code, _, stderr = run_command(main, *arguments)
        assert code == 2
        assert stderr.startswith(f"error: {said}") and stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


class FakeError(Exception):
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.message, self.code = message, code


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """model.py with the little it uses of Triton's Python backend."""
    triton = ModuleType("triton_python_backend_utils")
    vars(triton).update(
        TritonError=FakeError,
        TritonModelException=FakeError,
        Logger=SimpleNamespace(log_error=lambda text: None),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request[name]),
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda outputs=(), error=None: SimpleNamespace(outputs=dict(outputs), error=error),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec = importlib.util.spec_from_file_location("triton_model", TEMPLATE / "upsnet/1/model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    return module


def test_model_refuses_numpy_2(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.np, "__version__", "2.4.6")
    with pytest.raises(FakeError, match=r"needs numpy < 2, and finds 2.4.6"):
        backend.TritonPythonModel().initialize({"model_config": "{}"})


def test_model_runs_one_batch_for_each_image_size(backend: ModuleType, exported: Exported) -> None:
    batches: list[int] = []

    class Session:
        def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            batches.append(len(feeds["images"]))
            return exported.session.run(names, feeds)

    model = backend.TritonPythonModel()
    model.session, model.max_pixels = Session(), 64 * 64
    requests = [
        make_request(*shape, seed=i) for i, shape in enumerate([(1, 32, 64), (2, 64, 64), (3, 32, 64), (1, 96, 64)])
    ]
    responses = model.execute([request._asdict() for request in requests])
    assert batches == [4, 2]
    assert responses[3].error.code == "INVALID_ARG"
    assert responses[3].error.message == "images are 96 x 64: more than 4096 pixels"
    for request, response in zip(requests[:3], responses, strict=False):
        assert response.error is None
        for name, expected in exported.predict(request)._asdict().items():
            np.testing.assert_array_equal(response.outputs[name], expected)
