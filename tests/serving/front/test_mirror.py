"""Two versions' answers to one request, compared: what is asked, what is counted, and what is no comparison."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from serving.front.mirror import INFER, Answer, Job, Labelled, Mirror, Version, agreement, differences
from serving.rollouts.tally import Compared
from upsnet.categories import Category
from upsnet.geometry import ResizeRule
from upsnet.manifest import Manifest
from upsnet.runtimes.kserve import LENGTH, Server, infer_request

SKY, CAT, DOG = (
    Category(id=1, name="sky", isthing=False, color=(0, 0, 255)),
    Category(id=7, name="cat", isthing=True, color=(9, 9, 9)),
    Category(id=8, name="dog", isthing=True, color=(9, 9, 0)),
)
RULE = ResizeRule(short_side=64, max_side=128)
PHOTO, SERVER = [b"a photo"], Server("nowhere:1")


def manifest(*categories: Category, rule: ResizeRule = RULE) -> Manifest:
    return Manifest(name="m", categories=list(categories or (SKY, CAT)), resize=rule, max_detections=2)


class Told(Version):
    """A version that answers as a test says, without a server. asked: the messages that came."""

    def __init__(self, outputs: Any, described: Manifest | None = None, error: str = "") -> None:
        self.outputs, self.error, self._manifest = outputs, error, described or manifest()
        self.asked: list[Any] = []

    def ask(self, message: bytes, deadline: float) -> tuple[Answer, Any]:
        self.asked.append(pb.ModelInferRequest.FromString(message))
        return Answer(seconds=0.1, error=self.error), {} if self.error else self.outputs


def photos(*maps: list[list[int]], segments: dict[int, Category] | None = None) -> dict[str, Any]:
    """An answer of upsnet_photo: maps of one size, padded on the right by 2."""
    told = [
        {"id": id, "category_id": each.id, "name": each.name, "isthing": each.isthing}
        for id, each in (segments or {1: SKY, 2: CAT}).items()
    ]
    labels = np.pad(np.array(maps, np.uint16), ((0, 0), (0, 0), (0, 2)))
    sizes = np.array([np.shape(each) for each in maps], np.int32)
    return {"labels16": labels, "photo_sizes": sizes, "segments_json": [json.dumps(told).encode()] * len(maps)}


def job(body: bytes, **changes: Any) -> Job:
    return Job(targets=("a", "b"), model="upsnet_photo", size=len(body), deadline=5.0).model_copy(update=changes)


def message(model: str = "upsnet_photo", inputs: Any = None, outputs: Any = ("overlay",)) -> bytes:
    fields = infer_request(SERVER, model, inputs or {"photo": PHOTO}, outputs)
    return pb.ModelInferRequest(id="mine", **fields | {"model_version": "3"}).SerializeToString()


def compare(serving: Version, candidate: Version, body: bytes = b"", **changes: Any) -> Compared:
    mirror = Mirror()
    mirror._versions = {"a": serving, "b": candidate}
    body = body or message()
    return mirror.compare(job(body, **changes), body)


def test_photos_are_compared_whatever_the_caller_wanted_and_padding_counts_nowhere() -> None:
    serving = Told(photos([[1, 1, 2, 2]], [[0, 0, 2, 2]]))
    candidate = Told(photos([[1, 1, 2, 2]], [[0, 1, 2, 2]]))
    found = compare(serving, candidate, message(inputs={"photo": PHOTO * 2}))
    assert found.skipped == "" and found.different == []
    assert found.photos == [(4, 4), (4, 3)]
    assert sorted(found.classes) == [("cat", 4, 4), ("sky", 2, 2), ("void", 2, 1)]
    for version in (serving, candidate):
        (asked,) = version.asked
        assert [each.name for each in asked.outputs] == ["labels16", "photo_sizes", "segments_json"]
        assert (asked.id, asked.model_version, list(asked.inputs[0].shape)) == ("", "", [2, 1])
        assert asked.raw_input_contents[0] == 2 * (LENGTH.pack(7) + b"a photo")


def test_classes_are_the_same_by_id_name_and_kind_alone() -> None:
    same = {1: SKY, 2: CAT}
    renamed = {1: SKY, 2: CAT.model_copy(update={"name": "kitten"})}
    found = compare(
        Told(photos([[1, 1, 2]], segments=same)),
        Told(photos([[1, 1, 2]], segments=renamed), manifest(SKY, CAT.model_copy(update={"name": "kitten"}))),
    )
    assert found.photos == [(3, 2)] and ("cat", 1, 0) in found.classes
    assert found.different == [
        "classes missing in the candidate: cat (7, a thing)",
        "classes new in the candidate: kitten (7, a thing)",
    ]


def test_differences_name_classes_and_the_network_size() -> None:
    assert differences(manifest(), manifest()) == []
    other = ResizeRule(short_side=32, max_side=64)
    assert differences(manifest(SKY, CAT, DOG), manifest(SKY, CAT, rule=other)) == [
        "classes missing in the candidate: dog (8, a thing)",
        "network size: 64 to 128, the candidate 32 to 64",
    ]
    many = [SKY, *(Category(id=10 + n, name=f"t{n}", isthing=True, color=(1, 1, 1)) for n in range(7))]
    assert differences(manifest(*many), manifest(SKY))[0].endswith("t4 (14, a thing) and 2 more")


TENSORS = {
    "images": np.zeros((1, 2, 4, 3), np.uint8),
    "sizes": np.array([[2, 4]], np.int32),
    "scales": np.ones((1, 1), np.float32),
}


def network(panoptic: list[list[int]], category: int = 1) -> dict[str, Any]:
    segments = np.zeros((1, 3, 7), np.float32)
    segments[0, 1, 0] = category
    return {
        "panoptic": np.array([panoptic], np.uint8),
        "segments": segments,
        "segment_count": np.array([[2]], np.int32),
    }


def test_tensors_are_compared_at_the_network_size_and_not_across_two() -> None:
    body = message("upsnet", TENSORS, ("panoptic",))
    serving = Told(network([[1, 1, 2, 2], [0, 0, 2, 2]]))
    found = compare(serving, Told(network([[1, 1, 2, 2], [0, 0, 2, 0]])), body, model="upsnet")
    assert found.photos == [(8, 7)]
    assert len(serving.asked[0].raw_input_contents) == 3 and len(serving.asked[0].outputs) == 3
    smaller = Told({}, manifest(rule=ResizeRule(short_side=32, max_side=64)))
    found = compare(serving, smaller, body, model="upsnet")
    assert "network size of the version in service" in found.skipped and not smaller.asked
    assert found.different == ["network size: 64 to 128, the candidate 32 to 64"]


def test_a_category_beyond_the_class_table_is_the_candidates_fault() -> None:
    body = message("upsnet", TENSORS)
    ids = [[1, 1, 2, 2], [0, 0, 2, 2]]
    found = compare(Told(network(ids)), Told(network(ids, category=9)), body, model="upsnet")
    assert found.candidate is not None and "does not fit its model" in found.candidate.error
    assert found.serving is not None and found.serving.error == "" and not found.photos


@pytest.mark.parametrize("broken", [{}, photos([[1]], [[1]]) | {"segments_json": [b"{", b"["]}, photos([[1, 1]])])
def test_an_answer_that_is_none_is_its_versions_fault(broken: Any) -> None:
    found = compare(Told(photos([[1]])), Told(broken))
    assert found.candidate is not None and found.candidate.error and not found.photos
    assert found.serving is not None and found.serving.error == ""
    if broken:
        found = compare(Told({}), Told(photos([[1]])))
        assert found.serving is not None and found.serving.error and found.candidate is not None
        assert found.candidate.error == ""


def test_what_a_version_says_is_told_and_the_other_one_is_asked_all_the_same() -> None:
    serving, candidate = Told(photos([[1]])), Told({}, error="the network is broken")
    found = compare(serving, candidate, swapped=True)
    assert found.candidate is not None and found.candidate.error == "the network is broken"
    assert len(serving.asked) == len(candidate.asked) == 1


def test_a_photo_in_shared_memory_is_not_here() -> None:
    request = pb.ModelInferRequest(model_name="upsnet_photo")
    tensor = request.inputs.add(name="photo", datatype="BYTES", shape=[1, 1])
    tensor.parameters["shared_memory_region"].string_param = "r"
    found = compare(Told({}), Told({}), request.SerializeToString())
    assert found.skipped == "its photo is in shared memory"


def test_an_output_in_shared_memory_hinders_nothing() -> None:
    request = pb.ModelInferRequest.FromString(message())
    request.outputs[0].parameters["shared_memory_region"].string_param = "r"
    candidate = Told(photos([[1]]))
    assert compare(Told(photos([[1]])), candidate, request.SerializeToString()).photos == [(1, 1)]
    assert not any(each.parameters for each in candidate.asked[0].outputs)


def test_a_photo_in_the_tensors_own_contents() -> None:
    request = pb.ModelInferRequest(model_name="upsnet_photo")
    tensor = request.inputs.add(name="photo", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(PHOTO[0])
    candidate = Told(photos([[1]]))
    assert compare(Told(photos([[1]])), candidate, request.SerializeToString()).photos == [(1, 1)]
    assert list(candidate.asked[0].inputs[0].contents.bytes_contents) == PHOTO


def test_rest_with_its_tensor_behind_the_json_and_within_it() -> None:
    raw = struct.pack("<I", 7) + PHOTO[0]
    told = {"name": "photo", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [told]}).encode()
    candidate = Told(photos([[1]]))
    found = compare(Told(photos([[1]])), candidate, head + raw, rest=True, header_length=len(head))
    assert found.photos == [(1, 1)] and candidate.asked[0].raw_input_contents[0] == raw
    inside = {"name": "sizes", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}
    found = compare(Told({}), Told({}), json.dumps({"inputs": [inside]}).encode(), rest=True, model="upsnet")
    assert found.skipped == "its tensors are JSON"


def test_the_process_reads_jobs_until_its_input_ends() -> None:
    """With versions that are not there: each request is one line, whatever comes of it."""
    body = message()
    line = job(body, targets=("unix:/nowhere/a", "unix:/nowhere/b"), deadline=0.2).model_dump_json().encode() + b"\n"
    command = [sys.executable, "-P", "-m", "serving.front.mirror"]
    ended = subprocess.run(command, input=(line + body) * 2, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found = [Compared.model_validate_json(each) for each in ended.stdout.splitlines()]
    assert len(found) == 2
    for each in found:
        assert each.serving is not None and each.serving.error and each.candidate is not None and each.candidate.error


class Late(grpc.GenericRpcHandler):
    """A server that hangs, or says what is wrong."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
            if body == b"hang":
                while context.is_active():
                    time.sleep(0.01)
            context.abort(grpc.StatusCode.INTERNAL, "failed in /srv/secret/model.py: no such thing")
            raise AssertionError

        assert handler_call_details.method == INFER  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(answer)


def test_a_version_that_hangs_or_fails() -> None:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Late()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        version = Version(f"127.0.0.1:{port}")
        late, _ = version.ask(b"hang", 0.2)
        assert late.late and late.error == "no answer within 0.2 s"
        failed, _ = version.ask(b"fail", 5)
        assert not failed.late and failed.error == "failed in (a path) no such thing"
    finally:
        server.stop(None)


def test_agreement_of_many_photos_has_each_class_once() -> None:
    keys = {1: (1, "sky", False), 2: (7, "cat", True)}
    one = Labelled(np.array([[1, 1]], np.uint16), {1: keys[1]})
    two = Labelled(np.array([[1, 2, 0]], np.uint16), keys)
    found, classes = agreement([one, two], [one, Labelled(np.array([[1, 2, 2]], np.uint16), keys)])
    assert found == [(2, 2), (3, 1)]  # the cat of 1 pixel became one of 2: IoU 0.5 is no match
    assert classes == [("sky", 3, 3), ("cat", 1, 0), ("void", 1, 0)]
    with pytest.raises(ValueError, match="of photos of"):
        agreement([one], [two])
