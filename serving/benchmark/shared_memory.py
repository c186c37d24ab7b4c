"""A request whose image and map are in shared memory, through the door of serving/front/shared_memory.py."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ServerMetadataRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
)

from serving.front.shared_memory import FOLDER, PLACE, TOKEN
from serving.load_test.asking import OPTIONS, SERVICE
from serving.load_test.questions import tensor_question
from upsnet.contract import INPUTS, OUTPUTS
from upsnet.errors import InputError
from upsnet.geometry import NetworkBatch


class InShared:
    """Sends one batch again and again. `ask` writes the image, asks, and takes the map out, as a client has to."""

    def __init__(self, channel: grpc.aio.Channel, region: mmap.mmap, name: str, batch: NetworkBatch) -> None:
        self._infer, self._region = channel.unary_unary(f"{SERVICE}ModelInfer"), region
        self._image = batch.images.tobytes()
        self._map = slice(len(self._image), len(self._image) + batch.images[..., 0].size)
        request = ModelInferRequest.FromString(tensor_question("", batch).message)
        del request.raw_input_contents[0]
        places = {INPUTS[0]: slice(0, len(self._image)), OUTPUTS[0]: self._map}
        for tensor in (*request.inputs, *request.outputs):
            if place := places.get(tensor.name):
                tensor.parameters["shared_memory_region"].string_param = name
                tensor.parameters["shared_memory_offset"].int64_param = place.start
                tensor.parameters["shared_memory_byte_size"].int64_param = place.stop - place.start
        self._message = request.SerializeToString()

    async def ask(self) -> bytes:
        """The map."""
        self._region[: len(self._image)] = self._image
        await self._infer(self._message)
        return self._region[self._map]


@asynccontextmanager
async def in_shared_memory(url: str, batch: NetworkBatch) -> AsyncIterator[InShared]:
    """A region of our own, registered for as long as this lasts. InputError where the server offers none."""
    name = secrets.token_hex(16)
    key = f"/upsnet-client-{name}"
    size = len(batch.images.tobytes()) + batch.images[..., 0].size
    file = os.open(FOLDER / key[1:], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(file, size)
        async with grpc.aio.insecure_channel(url, options=OPTIONS) as channel:
            told = channel.unary_unary(f"{SERVICE}ServerMetadata")(ServerMetadataRequest().SerializeToString())
            place = dict(await told.initial_metadata()).get(PLACE)
            if place is None:
                raise InputError(f"the server at {url} offers no shared memory")
            secret = ((TOKEN, Path(place).read_text()),)
            register = SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size).SerializeToString()
            await channel.unary_unary(f"{SERVICE}SystemSharedMemoryRegister")(register, metadata=secret)
            try:
                with mmap.mmap(file, size) as region:
                    yield InShared(channel, region, name, batch)
            finally:
                leave = SystemSharedMemoryUnregisterRequest(name=name).SerializeToString()
                await channel.unary_unary(f"{SERVICE}SystemSharedMemoryUnregister")(leave, metadata=secret)
    finally:
        os.close(file)
        os.unlink(FOLDER / key[1:])
