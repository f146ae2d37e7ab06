"""Download a file from the public internet, never from the local network.

The check is on the IP address that is connected to, not on the name: this also refuses names that
resolve to local addresses, names that resolve differently the second time, and redirects to them.
"""

import ipaddress
import socket
import ssl
import string
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import httpcore

from tpo_jax.serving.errors import ApiError

REDIRECTS = 3
STEP_SECONDS = 10.0  # for one step: a connection, a read or a write
CODE = "invalid_url"
UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet.

    An IPv6 address that stands for an IPv4 address is what that one is (NAT64, RFC 6052) or is not
    public: it may lead into the local network.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in UNICAST or ip.sixtofour or ip.teredo:
            return False
    return ip.is_global and not ip.is_multicast


class _Timed(httpcore.NetworkStream):
    """A connection that may be used until a deadline, however little each read returns."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float):
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived."""
        return self.stream.read(max_bytes, _left(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of a buffer."""
        self.stream.write(buffer, _left(self.deadline))

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Return the connection, encrypted."""
        stream = self.stream.start_tls(ssl_context, server_hostname, _left(self.deadline))
        return _Timed(stream, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of the connection, such as its socket."""
        return self.stream.get_extra_info(info)


class _Guarded(httpcore.SyncBackend):
    """Network backend that connects to allowed addresses only, until a deadline."""

    def __init__(self, allowed: Callable[[str], bool], deadline: float):
        self.allowed, self.deadline = allowed, deadline

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
        step = _left(self.deadline)
        stream = super().connect_tcp(addresses[0], port, step, local_address, socket_options)
        return _Timed(stream, self.deadline)


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
        seconds: Most time, redirects included; a name is looked up in the resolver's own time.
        allowed: Whether an IP address may be connected to.

    Raises:
        ApiError: The URL is not allowed, not found, too large or too slow.
    """
    deadline = time.monotonic() + seconds
    with httpcore.ConnectionPool(network_backend=_Guarded(allowed, deadline)) as pool:
        for _ in range(REDIRECTS + 1):
            try:
                url = _in_ascii(url)
                if urlsplit(url).scheme not in ("http", "https"):
                    raise ApiError(400, "redirected to a URL that is not http or https", CODE)
                with pool.stream("GET", url) as response:
                    headers = {name.lower(): value for name, value in response.headers}
                    if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                        url = urljoin(url, headers[b"location"].decode())
                        continue
                    if response.status != 200:
                        raise ApiError(400, f"the URL returned status {response.status}", CODE)
                    _write(response, target, limit)
                    return
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as e:
                _left(deadline)
                raise ApiError(400, f"cannot be fetched: {type(e).__name__}", CODE) from e
            except (httpcore.UnsupportedProtocol, ValueError, UnicodeError) as e:
                raise ApiError(400, "not a valid URL", CODE) from e
    raise ApiError(400, f"more than {REDIRECTS} redirects", CODE)


def _left(deadline: float) -> float:
    """Return the seconds that the next step may take; raise `ApiError` after the deadline."""
    if (left := deadline - time.monotonic()) <= 0:
        raise ApiError(400, "the download takes too long", CODE)
    return min(STEP_SECONDS, left)


def _in_ascii(url: str) -> str:
    """Return a URL as it is sent: the host in IDNA, other characters percent-encoded.

    Raises:
        ValueError: It is not a URL.
    """
    parts = urlsplit(url)
    place = parts.netloc
    if not place.isascii():
        host = (parts.hostname or "").encode("idna").decode()
        place = host if parts.port is None else f"{host}:{parts.port}"
    path, query = (quote(part, string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, place, path, query, ""))


def _write(response: httpcore.Response, target: Path, limit: int) -> None:
    size = 0
    with target.open("wb") as file:
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > limit:
                raise ApiError(413, f"larger than {limit >> 20} MB", "too_large")
            file.write(chunk)
