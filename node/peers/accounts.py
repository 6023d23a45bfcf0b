"""What is remembered of the members over all their links, and the log of how links ended."""

import asyncio
import ssl
import time
from collections import Counter

from structlog.typing import FilteringBoundLogger

from node.config import MemberConfig
from node.peers.link import Link
from node.peers.transport import PeerInfo

LOG_INTERVAL_S = 1.0
"""Ends of one kind are logged at most this often, with the number of those left out."""

_EXPECTED_ENDS = ("closed", "lost", "replaced")


class Account:
    """One member: its dialling task where this node dials it, totals of ended links, open requests, last error."""

    __slots__ = (
        "contracts_hash",
        "dialler",
        "dropped_messages",
        "last_error",
        "received_bytes",
        "repeated",
        "requests",
        "sent_bytes",
        "shows_former",
    )

    def __init__(self) -> None:
        self.contracts_hash: bytes | None = None
        self.dialler: asyncio.Task[None] | None = None
        self.dropped_messages = 0
        self.last_error = ""
        self.repeated = ""
        """The error that was logged last; an attempt that fails alike is not logged until a link stood."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self.requests = 0
        self.shows_former = False
        """Whether the next attempt to dial it shows the former key, where two are valid: the other one failed."""

    def describe(self, member: MemberConfig, link: Link | None) -> PeerInfo:
        """Return `member` as a status page shows it; `link` is its open link, if there is one."""
        if link is not None and link.reason is not None:
            link = None
        return PeerInfo(
            id=member.id,
            address=member.address,
            connected=link is not None,
            connected_since_ms=None if link is None else link.opened_time_ms,
            sent_bytes=self.sent_bytes + (0 if link is None else link.sent_bytes),
            received_bytes=self.received_bytes + (0 if link is None else link.received_bytes),
            contracts_hash=self.contracts_hash,
            round_trip_ms=None if link is None else link.round_trip_ms,
            queued_bytes=0 if link is None else link.queued_bytes,
            dropped_messages=self.dropped_messages + (0 if link is None else link.dropped_messages),
            last_error=self.last_error,
        )


class Endings:
    """Counts why connections ended or failed, and logs it without letting anybody flood the log."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def note(self, code: str, text: str, member_id: str | None, account: Account | None) -> None:
        """Count `code`; remember it for the member (`account` None: a stranger); log it unless just said."""
        self.counts[code] += 1
        if account is not None:
            account.last_error = f"{code}: {text}"
            if account.repeated == account.last_error:
                return
            account.repeated = account.last_error
        key = f"{code} {member_id}" if account is not None else code
        now = time.monotonic()
        if now - self._logged_at.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            self._left_out[key] += 1
            return
        self._logged_at[key] = now
        write = self._log.info if code in _EXPECTED_ENDS else self._log.warning
        write("peer.ended", code=code, reason=text, peer=member_id, left_out=self._left_out.pop(key, 0))


def printable(text: str) -> str:
    """Return what a peer said, fit for logs and terminals: without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def describe_failure(error: Exception) -> str:
    """Return why a connection could not be made, in the operator's words."""
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not that of a member ({error.verify_message})"
    return printable(str(error)) or type(error).__name__
