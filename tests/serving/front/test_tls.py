"""TLS from files: who gets in, what is wrong with a file, and files that are renewed."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import trustme
from tritonclient.grpc import service_pb2_grpc

from serving.front.tls import Tls
from tests.serving.front.fake import Bench, bench, make_request
from upsnet.errors import InputError


class Files(NamedTuple):
    """Of one authority: a server's pair, a client's pair and itself."""

    tls: Tls
    authority: Path
    client_cert: Path
    client_key: Path


def make_files(folder: Path) -> Files:
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("somebody")
    server.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    client.private_key_pem.write_to_path(folder / "client-key.pem")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    pair = Tls(folder / "cert.pem", folder / "key.pem")
    return Files(pair, folder / "ca.pem", folder / "client.pem", folder / "client-key.pem")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_files(tmp_path / "one")


async def ask(made: Bench, credentials: grpc.ChannelCredentials | None) -> str:
    channel = (
        grpc.aio.insecure_channel(made.address)
        if credentials is None
        else grpc.aio.secure_channel(made.address, credentials)
    )
    async with channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return (await stub.ModelInfer(make_request(), timeout=10)).id


async def refused(made: Bench, credentials: grpc.ChannelCredentials | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(made, credentials)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert made.triton.seen == []


def test_tls(files: Files, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tls=files.tls) as made:
            await refused(made, None)
            await refused(made, grpc.ssl_channel_credentials(make_files(tmp_path / "other").authority.read_bytes()))
            assert await ask(made, grpc.ssl_channel_credentials(files.authority.read_bytes())) == "r"

    asyncio.run(main())


def test_mutual_tls(files: Files, tmp_path: Path) -> None:
    async def main() -> None:
        other = make_files(tmp_path / "other")
        async with bench(tls=files.tls._replace(client_ca=files.authority)) as made:
            root = files.authority.read_bytes()
            await refused(made, grpc.ssl_channel_credentials(root))
            stranger = other.client_key.read_bytes(), other.client_cert.read_bytes()
            await refused(made, grpc.ssl_channel_credentials(root, *stranger))
            known = files.client_key.read_bytes(), files.client_cert.read_bytes()
            assert await ask(made, grpc.ssl_channel_credentials(root, *known)) == "r"

    asyncio.run(main())


def test_files_that_are_renewed_are_taken_up(files: Files, tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tls=files.tls) as made:
            old = grpc.ssl_channel_credentials(files.authority.read_bytes())
            assert await ask(made, old) == "r"
            renewed = make_files(tmp_path / "other")
            new = grpc.ssl_channel_credentials(renewed.authority.read_bytes())
            files.tls.cert.write_bytes(renewed.tls.cert.read_bytes())
            assert await ask(made, old) == "r", "half a pair is not taken"
            files.tls.key.write_bytes(renewed.tls.key.read_bytes())
            assert await ask(made, new) == "r"
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(made, old)

    asyncio.run(main())


def test_the_same_files_for_http(files: Files) -> None:
    context = files.tls.ssl_context()
    assert context.verify_mode == ssl.CERT_NONE and context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert files.tls._replace(client_ca=files.authority).ssl_context().verify_mode == ssl.CERT_REQUIRED


def test_files_that_are_wrong_are_one_line(files: Files, tmp_path: Path) -> None:
    other = make_files(tmp_path / "other")
    tls, garbage = files.tls, tmp_path / "garbage.pem"
    garbage.write_bytes(b"nothing")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMFMGCSqGSIb3DQEFDTBGMC4=\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for wrong, told in (
        (
            tls._replace(key=other.tls.key),
            f"{other.tls.key} is not the key of the certificate {tls.cert}; give the pair",
        ),
        (tls._replace(cert=tmp_path / "none"), f"{tmp_path / 'none'} cannot be read: No such file or directory; give"),
        (tls._replace(key=tmp_path), f"{tmp_path} cannot be read: Is a directory; give"),
        (tls._replace(cert=garbage), f"{garbage} and {tls.key} are no certificate and key in PEM, without a password"),
        (tls._replace(key=locked), f"{tls.cert} and {locked} are no certificate and key in PEM, without a password"),
        (tls._replace(client_ca=garbage), f"{garbage} holds no certificate in PEM"),
    ):
        with pytest.raises(InputError) as caught:
            wrong.credentials()
        assert str(caught.value).startswith(told)
