"""Download a file from the public internet, never from the local network.

The check is on the IP address that is connected to, not on the name: this also refuses names that
resolve to local addresses, names that resolve differently the second time, and redirects to them.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpcore

from tpo_jax.serving.errors import ApiError

REDIRECTS = 3
CODE = "invalid_url"


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address)
    return ip.is_global and not ip.is_multicast


class _Guarded(httpcore.SyncBackend):
    """Network backend that connects to allowed addresses only."""

    def __init__(self, allowed: Callable[[str], bool]):
        self.allowed = allowed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve a name, check the address, and connect to that address."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ApiError(400, f"{host} does not resolve to an address", CODE) from error
        addresses = [str(entry[4][0]) for entry in found]
        if not all(self.allowed(address) for address in addresses):
            raise ApiError(403, f"{host} is not on the public internet", "not_allowed")
        return super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def fetch(
    url: str,
    target: Path,
    limit: int,
    seconds: float,
    allowed: Callable[[str], bool] = is_public,
) -> None:
    """Download a URL to `target`.

    Args:
        url: http or https.
        target: File to write.
        limit: Most bytes.
        seconds: Most time, redirects included.
        allowed: Whether an IP address may be connected to.

    Raises:
        ApiError: The URL is not allowed, not found, too large or too slow.
    """
    deadline = time.monotonic() + seconds
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), min(seconds, 10.0))
    with httpcore.ConnectionPool(network_backend=_Guarded(allowed)) as pool:
        for _ in range(REDIRECTS + 1):
            if urlsplit(url).scheme not in ("http", "https"):
                raise ApiError(400, "redirected to a URL that is not http or https", CODE)
            try:
                with pool.stream("GET", url, extensions={"timeout": timeouts}) as response:
                    headers = {name.lower(): value for name, value in response.headers}
                    if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                        url = urljoin(url, headers[b"location"].decode("latin-1"))
                        continue
                    if response.status != 200:
                        raise ApiError(400, f"the URL returned status {response.status}", CODE)
                    _write(response, target, limit, deadline)
                    return
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as e:
                raise ApiError(400, f"cannot be fetched: {type(e).__name__}", CODE) from e
            except (httpcore.UnsupportedProtocol, ValueError, UnicodeError) as e:
                raise ApiError(400, "not a valid URL", CODE) from e
    raise ApiError(400, f"more than {REDIRECTS} redirects", CODE)


def _write(response: httpcore.Response, target: Path, limit: int, deadline: float) -> None:
    size = 0
    with target.open("wb") as file:
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > limit:
                raise ApiError(413, f"larger than {limit >> 20} MB", "too_large")
            if time.monotonic() > deadline:
                raise ApiError(400, "the download takes too long", CODE)
            file.write(chunk)
