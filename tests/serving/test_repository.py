"""The repository's files: two configurations with one contract, the model's code, and deploying into it."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import serving.deploy
import serving.serve
from export.backends import onnx_runtime
from export.building import build_engine
from export.profiles import chosen_profiles
from serving.layout import latest_version, versions
from serving.lock import STEP
from serving.repository import TEMPLATE, deploy, deploy_engine
from serving.server import TritonServer
from tests import backends
from tests.serving.conftest import Exported, make_request
from tests.serving.test_configs import config
from upsnet.categories import Category
from upsnet.command_line.command import make_app
from upsnet.contract import CUDA_LIBRARY, LIBRARY, METADATA_KEY, MODEL, PHOTO_MODEL, PLUGINS
from upsnet.engines.manifest import EngineManifest, Part, engine_manifest_path
from upsnet.errors import InputError
from upsnet.kernels.choice import Kernels
from upsnet.manifest import Manifest
from upsnet.runtimes.triton import TritonPredictor


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


def test_the_plans_own_profile_is_what_the_server_takes(exported: Exported, repository: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(exported.model.parent, engine)
    plan = engine / "model.plan"
    plan.write_bytes(b"plan")
    described = Manifest.load(exported.manifest_path)
    sizes = ("64", "96x128", "160")
    first, second = (
        chosen_profiles(described.resize, 4, batch=batch, size=sizes)[0] for batch in ((2, 4, 8), (16, 16, 16))
    )
    manifest = EngineManifest(
        backend="tensorrt",
        engine=Part.of(plan),
        bytes=4,
        model=Part.of(exported.model),
        builder="11.1",
        platform="linux-x86_64",
        precision="fp32",
        profiles=(first, second),
        network=described,
    )
    manifest.save(engine_manifest_path(plan))
    deploy_engine(engine, repository)
    text = (repository / MODEL / "config.pbtxt").read_text()
    assert "max_batch_size: 8\n" in text
    assert re.findall(r'name: "(.*)" batch_size', text) == ["2 x 64 x 64", "8 x 160 x 160"]
    assert (latest_version(repository) / "model.plan.json").is_file()
    plan.write_bytes(b"another")
    with pytest.raises(InputError, match=r"model\.plan is not the engine that model\.plan\.json describes"):
        deploy_engine(engine, repository)
    for path in (plan, engine_manifest_path(plan)):
        path.unlink()
    deploy_engine(engine, repository)
    assert not (latest_version(repository) / "model.plan.json").exists()
    assert f"max_batch_size: {described.max_batch}\n" in (repository / MODEL / "config.pbtxt").read_text()


def test_deploy_engine_brings_onnx_runtimes_kernels_and_leaves_no_other(
    exported: Exported, repository: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(exported.model.parent, engine)
    for name in (LIBRARY, CUDA_LIBRARY):
        (engine / name).write_text(name)
    deploy_engine(engine, repository)
    served = [latest_version(repository) / name for name in (LIBRARY, CUDA_LIBRARY)]
    assert [path.read_text() for path in served] == [LIBRARY, CUDA_LIBRARY]
    (engine / LIBRARY).unlink()
    deploy_engine(engine, repository)
    assert [path.exists() for path in served] == [False, True]


@pytest.fixture
def built(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Kernels], Path]:
    """Builds an engine whose session came back with these kernels; its folder. No TensorRT."""

    def build(kernels: Kernels) -> Path:
        session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
        monkeypatch.setattr(onnx_runtime, "open_with_kernels", lambda *_, **__: (session, kernels))
        backends.put_in_place(monkeypatch)
        build_engine(exported.model, tmp_path / "engine")
        return tmp_path / "engine"

    return build


def test_kernels_that_are_gone_or_others_are_not_deployed(
    built: Callable[[Kernels], Path], repository: Path, tmp_path: Path
) -> None:
    library = tmp_path / LIBRARY
    library.write_bytes(b"kernels")
    engine = built(Kernels(library))
    named = {"file": LIBRARY, "sha256": hashlib.sha256(b"kernels").hexdigest()}
    assert json.loads((engine / "engine.json").read_text())["kernels"] == [named]
    deploy_engine(engine, repository)
    served = latest_version(repository) / LIBRARY
    (engine / LIBRARY).write_bytes(b"others")
    with pytest.raises(InputError, match=rf"{LIBRARY} is not what the engine was built with; `upsnet engine` makes"):
        deploy_engine(engine, repository)
    (engine / LIBRARY).unlink()
    with pytest.raises(InputError, match=rf"there is no .*{LIBRARY}, which the engine was built with; `upsnet engine`"):
        deploy_engine(engine, repository)
    assert served.read_bytes() == b"kernels"


def test_an_engine_that_came_back_with_bodies_has_no_library(built: Callable[[Kernels], Path], tmp_path: Path) -> None:
    library = tmp_path / LIBRARY
    library.write_bytes(b"kernels")
    assert (built(Kernels(library)) / LIBRARY).is_file()
    engine = built(Kernels(None, "it does not run this model"))
    assert not (engine / LIBRARY).exists()
    report = json.loads((engine / "engine.json").read_text())
    assert report["kernels"] == []
    assert report["onnxruntime"]["kernels"] == "function bodies (it does not run this model)"


def test_plugins_that_are_others_are_not_deployed(
    built: Callable[[Kernels], Path], repository: Path, tmp_path: Path
) -> None:
    engine = built(Kernels(None, "none"))
    report = json.loads((engine / "engine.json").read_text())
    report["plugins"] = {"file": "mine.so", "sha256": hashlib.sha256(b"plugins").hexdigest()}
    (engine / "engine.json").write_text(json.dumps(report))
    deploy_engine(engine, repository)  # no plan, no plugins
    (engine / "model.plan").write_bytes(b"plan")
    (engine / PLUGINS).write_bytes(b"plugins")
    deploy_engine(engine, repository)
    (engine / PLUGINS).write_bytes(b"others")
    with pytest.raises(InputError, match=rf"{PLUGINS} is not what the engine was built with; `upsnet engine` makes"):
        deploy_engine(engine, repository)


def test_the_models_code_knows_the_libraries_names() -> None:
    text = (TEMPLATE / "upsnet/1/model.py").read_text()
    assert "from upsnet.contract import CUDA_LIBRARY, INPUTS, LIBRARY, OUTPUTS\n" in text
    assert "self.start(model, [cuda, CPU], CUDA_LIBRARY)" in text and "self.start(model, [CPU], LIBRARY)" in text


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
    assert len(contents(tmp_path)) == 10


def test_latest_version_counts_as_numbers(tmp_path: Path) -> None:
    for name in ("2", "10", "9", "configs"):
        (tmp_path / "upsnet" / name).mkdir(parents=True)
    assert latest_version(tmp_path).name == "10"


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the lock, which whoever changes a repository holds."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != STEP]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_deployment_that_fails_changes_nothing(
    exported: Exported, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (latest_version(repository) / "model.plan").write_text("of the model that is there")
    before = contents(repository)
    with pytest.raises(InputError, match=r"gone.so: cannot be read: No such file or directory; build it again"):
        deploy(exported.model, exported.manifest_path, repository, [tmp_path / "gone.so"])

    def full(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        InputError, match=r"repository: cannot be written: No space left on device; give another folder"
    ):
        deploy(exported.model, exported.manifest_path, repository)
    assert contents(repository) == before
    assert not list(repository.glob(".*"))


def test_a_repository_of_before_the_photo_model_is_completed(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / MODEL / "3").mkdir(parents=True)
    (tmp_path / MODEL / "config.pbtxt").write_text("old")
    deploy(exported.model, exported.manifest_path, tmp_path)
    assert [folder.name for folder in versions(tmp_path)] == ["3"]
    assert [folder.name for folder in versions(tmp_path, PHOTO_MODEL)] == ["3"]
    assert (tmp_path / PHOTO_MODEL / "3/model.py").read_bytes() == (TEMPLATE / PHOTO_MODEL / "1/model.py").read_bytes()


def test_deploy_says_how_to_get_past_files_of_others(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(InputError, match=r"model.onnx: cannot be read: Permission denied; .* ask its owner"):
        deploy(exported.model, exported.manifest_path, tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=r"/b: cannot be written: Permission denied; give another .* --repository"):
        deploy(exported.model, exported.manifest_path, tmp_path / "b")
    assert not list(tmp_path.iterdir())


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
    for model in (MODEL, PHOTO_MODEL):
        given, made = config(model, name), config(model, name, repository)
        carried = made.parameters.pop(METADATA_KEY).string_value
        assert Manifest.model_validate_json(carried) == hostile
        assert set(made.parameters) - set(given.parameters) == {"max_pixels", "max_photo_bytes"}
        assert {key: made.parameters[key] for key in given.parameters} == dict(given.parameters)


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
