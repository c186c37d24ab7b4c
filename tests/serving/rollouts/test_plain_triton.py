"""A repository of roll-outs under a plain tritonserver, which knows nothing of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from serving.repository import Parts
from serving.rollouts import steps
from serving.rollouts.record import read_record
from tests.serving.conftest import Exported, make_request
from tests.serving.rollouts.plain_triton import PlainTriton, plain_triton
from upsnet.contract import MODEL, PHOTO_MODEL
from upsnet.runtimes.triton import TritonPredictor

pytestmark = pytest.mark.triton


def served(server: PlainTriton) -> tuple[str, str]:
    """The versions that both models have, and the name of the network."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(server.url) as client:
        found = [client.get_model_metadata(model).versions for model in (MODEL, PHOTO_MODEL)]
    assert found[0] == found[1] and len(found[0]) == 1, "one version of both"
    predictor = TritonPredictor(server.url)
    try:
        return found[0][0], predictor.manifest.name
    finally:
        predictor.close()


def test_it_serves_what_the_step_says(
    exported: Exported, repository: Path, parts: Parts, triton_environment: Path, tmp_path: Path
) -> None:
    """Also with everything that a kill can leave: half a version, half a step, half a model, links of no use."""
    steps.stage(repository, parts)
    link = tmp_path / "link"
    link.symlink_to(repository)
    os.mkdir(repository / MODEL / "3")
    os.mkdir(repository / MODEL / "rollouts/000009")
    (repository / MODEL / "rollouts/.now").symlink_to("000009")
    shutil.copytree(repository / MODEL / "1", repository / MODEL / "rollouts/incoming/upsnet")
    request = make_request(1, 32, 64)
    with plain_triton(triton_environment, link, "--model-config-name=cpu") as server:
        assert served(server) == ("1", "standin")
        predictor = TritonPredictor(server.url)
        np.testing.assert_array_equal(predictor.predict(request).panoptic, exported.predict(request).panoptic)
        predictor.close()
    with plain_triton(triton_environment, repository, "--model-config-name=candidate_cpu") as server:
        assert served(server) == ("2", "another")
    steps.promote(repository, read_record(repository), {}, 1.0)
    with plain_triton(triton_environment, repository, "--model-config-name=cpu") as server:
        assert served(server) == ("2", "another")


def test_one_that_is_deployed_starts_whatever_a_deployment_has_left(
    exported: Exported, repository: Path, triton_environment: Path
) -> None:
    """A folder in the repository is a model to Triton; what is half made lies deeper."""
    from serving.repository import deploy

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody tidies up after a kill
        patch.setattr(shutil, "copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            deploy(exported.model, exported.manifest_path, repository)
    assert list((repository / MODEL).glob(".partial-*"))
    with plain_triton(triton_environment, repository, "--model-config-name=cpu") as server:
        assert served(server) == ("1", "standin")
    deploy(exported.model, exported.manifest_path, repository)
    assert not list(repository.rglob(".partial-*"))
