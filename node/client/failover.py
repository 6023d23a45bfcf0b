"""Which node to try next and when to give up; and the reading of an event stream. No network in here.

Trying again is always safe: reading changes nothing, and a transaction has one effect however often and
wherever it is submitted.
"""

import random
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from node.client.answers import LedgerEvent
from node.client.operations import failure, reader
from node.errors import ConfigError, HansaError, Unavailable

TIMEOUT_S_DEFAULT = 10.0
PATIENCE_S_DEFAULT = 10.0
CONNECT_TIMEOUT_S = 3.0
WAIT_SLICE_S = 20.0
"""A longer wait is made of requests of this length, so that it survives the node that it started with."""
STREAM_SILENCE_S = 60.0
EVENT_BYTES_MAX = 8 * 1024 * 1024

_PAUSE_S_FIRST = 0.1
_PAUSE_S_MAX = 2.0
_ELSEWHERE = {
    "queue_full",
    "too_many_from_sender",
    "node_busy",
    "too_many_streams",
    "proofs_spent",
    "not_ready",
    "body_too_slow",
}

_read_event = reader(LedgerEvent)


def node_urls(urls: str | Sequence[str]) -> tuple[str, ...]:
    """One or more URLs of nodes without their trailing slash; raise ConfigError for what is none."""
    given = (urls,) if isinstance(urls, str) else tuple(urls)
    for url in given:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError("invalid_usage", f"{url!r} is no URL of a node: write http://host:port")
    if not given:
        raise ConfigError("invalid_usage", "no URL of a node is given")
    return tuple(url.rstrip("/") for url in given)


def trusted(urls: Sequence[str]) -> ssl.SSLContext | bool:
    """Return httpx's `verify` for clients of these URLs: the public authorities when one is of https, else nobody.

    To load the authorities takes 40 ms of processor time, longer than most commands. Where no URL needs them, a
    connection by TLS would be refused and not left unverified.
    """
    if any(urlsplit(url).scheme == "https" for url in urls):
        return True
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Attempts:
    """The attempts at one request: each URL in turn, then again after a growing pause, until patience ends."""

    def __init__(self, urls: Sequence[str], preferred: int, patience_s: float) -> None:
        self.place = preferred
        self._urls = urls
        self._left_of_round = len(urls)
        self._pause_s = _PAUSE_S_FIRST
        self._deadline = time.monotonic() + patience_s

    @property
    def url(self) -> str:
        """The node to ask now."""
        return self._urls[self.place]

    def failed(self, error: HansaError) -> float:
        """Move on to the next node and return the seconds to wait before; raise `error` when patience ended."""
        self.place = (self.place + 1) % len(self._urls)
        self._left_of_round -= 1
        if self._left_of_round:
            return 0.0
        self._left_of_round = len(self._urls)
        asked_ms = error.details.get("retry_after_ms")
        pause_s = max(self._pause_s * random.uniform(0.5, 1.0), asked_ms / 1000 if isinstance(asked_ms, int) else 0)
        self._pause_s = min(self._pause_s * 2, _PAUSE_S_MAX)
        if time.monotonic() + pause_s > self._deadline:
            raise error
        return pause_s


def unreachable(url: str, error: httpx.TransportError) -> Unavailable:
    """The error for a node that did not answer."""
    return Unavailable("node_unreachable", f"{url}: {error or type(error).__name__}", url=url)


def answer_failure(response: httpx.Response) -> tuple[HansaError, bool]:
    """The error that an answer says, and whether another node, or this one later, may do better."""
    error = failure(response.status_code, response.content)
    return error, error.code in _ELSEWHERE or response.status_code in (502, 503, 504)


def timeout(timeout_s: float, wait_s: float = 0.0) -> httpx.Timeout:
    """The limits of one request that may take `wait_s` on purpose."""
    return httpx.Timeout(timeout_s + wait_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))


class EventLines:
    """Server-sent events from their lines. `cursor` is where to resume after what was read so far."""

    def __init__(self, cursor: str | None) -> None:
        self.cursor = cursor
        self._data: list[str] = []
        self._size = 0

    def feed(self, line: str) -> LedgerEvent | None:
        """The event that `line` completes, if it completes one."""
        if not line:
            data, self._data, self._size = "\n".join(self._data), [], 0
            return _read_event(data.encode()) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        self._size += len(value)
        if self._size > EVENT_BYTES_MAX:
            raise Unavailable("unexpected_answer", f"an event is larger than {EVENT_BYTES_MAX} bytes")
        if field == "data":
            self._data.append(value)
        elif field == "id":
            self.cursor = value
        return None
