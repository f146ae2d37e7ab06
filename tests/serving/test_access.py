"""Who may use the server: API key and host name; what clients get when it fails or stops."""

import asyncio
import json

import httpx
import pytest

from tpo_jax.serving.access import AccessControl, host_allowed
from tpo_jax.serving.app import build_app
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.settings import ServerSettings

SCOPE = {"type": "http", "path": "/health", "headers": [(b"host", b"localhost:8000")]}


def test_api_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    transport = httpx.ASGITransport(build_app([], ServerSettings(api_key="secret")))

    async def run():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in ("/", "/page.js", "/page.css", "/health"):
                assert (await client.get(path)).status_code == 200
            for path in ("/v1/models", "/metrics", "/page/settings", "/nothing"):
                for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
                    refused = await client.get(path, headers=given)
                    assert refused.status_code == 401
                    assert refused.json()["error"]["code"] == "invalid_api_key"
            for scheme in ("Bearer", "bearer"):
                given = {"authorization": f"{scheme} secret"}
                allowed = await client.get("/v1/models", headers=given)
                assert allowed.json() == {"object": "list", "data": []}
            other = await client.post("/v1/models", headers=given)
            assert other.status_code == 405
            assert sorted(other.headers["allow"].split(", ")) == ["GET", "HEAD"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("localhost", ["localhost"], True),
        ("LocalHost:8000", ["localhost"], True),
        ("[::1]:8000", ["::1"], True),
        ("evil.example", ["localhost"], False),
        ("evil.example", ["*"], True),
        ("a.example.com", ["*.example.com"], True),
        ("example.com.evil", ["*.example.com"], False),
        ("", ["localhost"], False),
        ("[::1", ["localhost"], False),
    ],
)
def test_allowed_hosts(host, allowed, expected) -> None:
    assert host_allowed(host, allowed) == expected


def test_a_failure_of_the_server_is_counted() -> None:
    async def failing(scope, receive, send):
        raise RuntimeError("broken")

    metrics = Metrics()
    access = AccessControl(failing, ServerSettings(), metrics, ["/health"])
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(access(SCOPE, None, None))
    assert 'requests_total{path="/health",status="500"} 1.0' in metrics.text().decode()


def test_a_request_cancelled_at_shutdown_gets_an_error() -> None:
    sent = []

    async def waiting(scope, receive, send):
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def run():
        access = AccessControl(waiting, ServerSettings(), Metrics(), ["/health"])
        task = asyncio.create_task(access(SCOPE, None, send))
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(run())
    assert sent[0]["status"] == 503
    assert "shutting down" in json.loads(sent[1]["body"])["error"]["message"]
