"""TLS from files: who gets in, what is wrong with a file, and files that are renewed."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import trustme
from tritonclient.grpc import service_pb2_grpc

from serving.front.tls import Tls
from tests.serving.front.fake import Bench, bench, make_request
from tests.serving.ops.fakes import Front
from upsnet.errors import InputError


class Files(NamedTuple):
    """Of one authority: a server's pair, a client's pair and itself."""

    tls: Tls
    authority: Path
    client_cert: Path
    client_key: Path


def make_files(folder: Path, *dates: datetime) -> Files:
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    begin, end = dates or (None, None)
    server = authority.issue_cert("127.0.0.1", not_before=begin, not_after=end)
    client = authority.issue_cert("somebody")
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


def test_http_takes_up_files_that_are_renewed(files: Files, tmp_path: Path) -> None:
    """The pair, and the authority of those who are let in."""

    async def asked(of: Files, port: int, who: Files) -> str:
        context = ssl.create_default_context(cafile=of.authority)
        context.load_cert_chain(who.client_cert, who.client_key)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            told = await asyncio.wait_for(reader.read(), 10)
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return "refused"
        return told[9:12].decode() or "refused"

    async def main() -> None:
        other = make_files(tmp_path / "other")
        async with Front(tmp_path, tls=files.tls._replace(client_ca=files.authority)) as front:
            port = front.ports["http"]
            assert await asked(files, port, files) == "200"
            assert await asked(files, port, other) == "refused"
            kept = make_files(tmp_path / "kept").authority
            kept.write_bytes(files.authority.read_bytes())
            old = files._replace(authority=kept)
            files.tls.cert.write_bytes(other.tls.cert.read_bytes())
            assert await asked(old, port, files) == "200", "half a pair is not taken"
            files.tls.key.write_bytes(other.tls.key.read_bytes())
            assert await asked(other, port, files) == "200"
            assert await asked(old, port, files) == "refused"
            files.authority.write_bytes(other.authority.read_bytes())
            assert await asked(other, port, other) == "200"
            assert await asked(other, port, files) == "refused"

    asyncio.run(main())


def test_a_certificate_out_of_its_time_is_one_line(tmp_path: Path) -> None:
    now, day = datetime.now(UTC), timedelta(days=1)
    for dates, told in (
        ((now - 2 * day, now - day), "has expired; renew it"),
        ((now + day, now + 2 * day), "is not valid yet; renew it"),
    ):
        made = make_files(tmp_path / "dated", *dates)
        for tls in (made.tls, made.tls._replace(client_ca=made.authority)):
            with pytest.raises(InputError) as caught:
                tls.credentials()
            assert str(caught.value) == f"{made.tls.cert} {told}"


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
        (Tls(tls.key, tls.cert), f"{tls.key} holds no certificate, and {tls.cert} does; swap them"),
        (tls._replace(cert=tmp_path / "none"), f"{tmp_path / 'none'} cannot be read: No such file or directory; give"),
        (tls._replace(key=tmp_path), f"{tmp_path} cannot be read: Is a directory; give"),
        (tls._replace(cert=garbage), f"{garbage} and {tls.key} are no certificate and key in PEM, without a password"),
        (tls._replace(key=locked), f"{tls.cert} and {locked} are no certificate and key in PEM, without a password"),
        (tls._replace(client_ca=garbage), f"{garbage} holds no certificate in PEM"),
    ):
        with pytest.raises(InputError) as caught:
            wrong.credentials()
        assert str(caught.value).startswith(told)
