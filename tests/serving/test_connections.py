"""Idle and surplus connections are closed."""

import json
import socket
import threading

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tpo_jax.serving import connections


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(connections, "SECONDS", 0.5)
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app, http=connections.Connection, log_level="warning", limit_concurrency=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
    ],
)
def test_connections_without_complete_headers_are_closed(port, sent):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        got = b""
        while data := client.recv(1 << 16):
            got += data
        assert got.count(b"here") == sent.count(b"\r\n\r\n")


def test_connections_in_use_stay_open(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"here" in client.recv(1 << 16)


def test_surplus_connections_get_an_error_in_openais_format(port):
    address = ("127.0.0.1", port)
    with (
        socket.create_connection(address, timeout=20),
        socket.create_connection(address, timeout=20),
        socket.create_connection(address, timeout=20) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while data := client.recv(1 << 16):
            got += data
    head, _, body = got.partition(b"\r\n\r\n")
    assert b" 503 " in head.splitlines()[0]
    assert json.loads(body)["error"]["code"] == "busy"
