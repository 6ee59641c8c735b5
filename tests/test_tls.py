from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from distributed.comm import connect, listen
from distributed.security import Security

from envsync.runner.tls import Authority, Credentials


def context(
    credentials: Credentials, purpose: ssl.Purpose, tmp_path: Path, strict: bool = True
) -> ssl.SSLContext:
    folder = tmp_path / str(id(credentials))
    folder.mkdir(exist_ok=True)
    for name, data in credentials.files().items():
        (folder / name).write_bytes(data)
    made = ssl.create_default_context(purpose, cafile=str(folder / "ca.pem"))
    made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    made.check_hostname = False
    if strict:
        made.verify_flags |= ssl.VERIFY_X509_STRICT
    return made


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Connect both over loopback; return what the server read."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(reader: Any, writer: Any) -> None:
        data = await reader.read(5)
        writer.write(data)
        await writer.drain()
        heard.set_result(data.decode())
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        writer.write(b"hello")
        answer = await reader.read(5)
        writer.close()
        if not answer:
            raise ssl.SSLError("the server hung up")
        return await heard


async def test_roles_trust_each_other_under_strict_verification(tmp_path: Path) -> None:
    authority = Authority("test")
    scheduler = authority.issue("scheduler", ["node1", "10.0.0.1", "fe80::1%eth0"])
    worker = authority.issue("worker")
    client = authority.issue("client")
    server = context(scheduler, ssl.Purpose.CLIENT_AUTH, tmp_path)
    for one in (worker, client):
        assert await handshake(server, context(one, ssl.Purpose.SERVER_AUTH, tmp_path)) == "hello"


async def test_another_clusters_certificate_is_refused(tmp_path: Path) -> None:
    ours, theirs = Authority("test"), Authority("test")
    server = context(ours.issue("scheduler"), ssl.Purpose.CLIENT_AUTH, tmp_path)
    stranger = theirs.issue("client")
    trusting = context(stranger, ssl.Purpose.SERVER_AUTH, tmp_path)
    trusting.load_verify_locations(cadata=ours.certificate)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(server, trusting)


async def test_a_client_cannot_pose_as_a_scheduler(tmp_path: Path) -> None:
    authority = Authority("test")
    impostor = context(authority.issue("client"), ssl.Purpose.CLIENT_AUTH, tmp_path)
    victim = context(authority.issue("worker"), ssl.Purpose.SERVER_AUTH, tmp_path)
    with pytest.raises(ssl.SSLError):
        await handshake(impostor, victim)


def test_names_are_in_the_certificate() -> None:
    credentials = Authority("test").issue("scheduler", ["node1", "10.0.0.1", "bücher.example.org", "node1"])
    certificate = x509.load_pem_x509_certificate(credentials.cert.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "node1" in names.get_values_for_type(x509.DNSName)
    assert "xn--bcher-kva.example.org" in names.get_values_for_type(x509.DNSName)
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]


def test_the_key_is_not_shown() -> None:
    credentials = Authority("test").issue("client")
    assert "PRIVATE KEY" in credentials.key
    assert "PRIVATE KEY" not in repr(credentials)
    assert "PRIVATE KEY" not in repr(credentials.security())


async def test_distributed_speaks_with_the_memory_only_client(tmp_path: Path) -> None:
    authority = Authority("test")
    scheduler = authority.issue("scheduler")
    for name, data in scheduler.files().items():
        (tmp_path / name).write_bytes(data)
    there = Security(
        require_encryption=True,
        tls_ca_file=str(tmp_path / "ca.pem"),
        tls_scheduler_cert=str(tmp_path / "cert.pem"),
        tls_scheduler_key=str(tmp_path / "key.pem"),
    )

    async def serve(comm: Any) -> None:
        await comm.write({"heard": await comm.read()})
        await comm.close()

    async with listen("tls://127.0.0.1:0", serve, **there.get_listen_args("scheduler")) as listener:
        here = authority.issue("client").security()
        comm = await connect(listener.contact_address, **here.get_connection_args("client"))
        await comm.write("hello")
        assert await comm.read() == {"heard": "hello"}
        await comm.close()
