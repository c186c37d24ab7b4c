"""A server as the load test sees it: messages in, answers out, and what it says of itself."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.grpc.service_pb2 import ModelConfigRequest, ModelConfigResponse, ModelInferResponse

from serving.load_test.loops import OK, WRONG
from serving.load_test.questions import Answer, Question, outputs_of
from upsnet.contract import METADATA_KEY, MODEL, PHOTO_MODEL
from upsnet.errors import InputError
from upsnet.manifest import Manifest

SERVICE = "/inference.GRPCInferenceService/"
OPTIONS = [
    ("grpc.max_send_message_length", 2**31 - 1),  # gRPC's own 4 MiB are less than a batch of photos
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),  # a proxy for the web must not be asked for a server on this machine
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel
]


class Server:
    """Connections to a server. A context manager, inside a running loop."""

    def __init__(
        self, url: str, *, connections: int = 1, deadline: float = 60.0, tls: grpc.ChannelCredentials | None = None
    ) -> None:
        self.url, self.deadline = url, deadline
        open_channel = grpc.aio.insecure_channel if tls is None else grpc.aio.secure_channel
        secret = () if tls is None else (tls,)
        self._channels = [open_channel(url, *secret, options=OPTIONS) for _ in range(connections)]
        asks = [channel.unary_unary(f"{SERVICE}ModelInfer") for channel in self._channels]  # bytes in, bytes out
        self._asks = itertools.cycle(asks)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def manifest(self, model: str) -> Manifest:
        """Of a model, out of its configuration. InputError where the server has no such model, or does not tell."""
        try:
            parameters = (await self._config(model)).parameters
        except grpc.aio.AioRpcError as error:
            raise InputError(f"the server at {self.url} does not describe {model}: {said(error)}") from None
        if METADATA_KEY not in parameters:
            raise InputError(
                f"the server at {self.url} does not tell the manifest of {model}; serve it with `upsnet serve`"
            )
        return Manifest.model_validate_json(parameters[METADATA_KEY].string_value)

    async def instances(self) -> dict[str, int]:
        """How many of each model can run at once, of those that the server describes."""
        found = {}
        for model in (MODEL, PHOTO_MODEL):
            with suppress(grpc.aio.AioRpcError):
                groups = (await self._config(model)).instance_group
                found[model] = sum(group.count * max(1, len(group.gpus)) for group in groups)
        return {model: count for model, count in found.items() if count}

    async def _config(self, model: str) -> ModelConfig:
        """Raises grpc.aio.AioRpcError."""
        call = self._channels[0].unary_unary(
            f"{SERVICE}ModelConfig", ModelConfigRequest.SerializeToString, ModelConfigResponse.FromString
        )
        return (await call(ModelConfigRequest(name=model), timeout=self.deadline)).config

    async def ask(self, message: bytes) -> Answer:
        """Raises grpc.aio.AioRpcError."""
        return outputs_of(ModelInferResponse.FromString(await next(self._asks)(message, timeout=self.deadline)))


class Questions:
    """Asks them in turn, and compares each answer with the one that the same question had when it was asked alone."""

    def __init__(self, server: Server, questions: Sequence[Question], references: Sequence[Answer]) -> None:
        self._server, self._questions, self._references = server, questions, references
        self.said: Counter[tuple[str, str]] = Counter()  # status and message of what was refused or failed

    async def send(self, number: int) -> str:
        place = number % len(self._questions)
        try:
            answer = await self._server.ask(self._questions[place].message)
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            self.said[status, said(error)] += 1
            return status
        if answer == self._references[place]:
            return OK
        self.said[WRONG, self._questions[place].name] += 1
        return WRONG


async def ask_alone(server: Server, questions: Sequence[Question]) -> list[Answer]:
    """Each by itself, with nobody else: what the answers under load have to be. InputError for one that is refused."""
    answers = []
    for question in questions:
        try:
            answers.append(await server.ask(question.message))
        except grpc.aio.AioRpcError as error:
            raise InputError(f"the server at {server.url} refuses {question.name}: {said(error)}") from None
    return answers


def said(error: grpc.aio.AioRpcError) -> str:
    """The server's words, in one line."""
    return " ".join((error.details() or error.code().name).split())[:200]
