"""What the node may know of its links: small, so that another transport can stand behind it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from node.config import MemberConfig
from node.wire import Reply, Request, WireMessage


class PeerInfo(msgspec.Struct, frozen=True):
    """One other member, as a status page shows it. Times are Unix milliseconds, sizes bytes since the start.

    `contracts_hash` is what the peer said when it connected last; `last_error` why its last link ended or the last
    attempt failed ("" if none did); `round_trip_ms` is the last measured one (None: not yet). `queued_bytes` wait
    for the peer now; `dropped_messages` of bulk were left out since the start because it is slow.
    """

    id: str
    address: str
    connected: bool
    connected_since_ms: int | None
    sent_bytes: int
    received_bytes: int
    contracts_hash: bytes | None
    round_trip_ms: int | None
    queued_bytes: int
    dropped_messages: int
    last_error: str


class PeerHandler(Protocol):
    """Whoever the transport tells. Calls come from the event loop, one at a time, and must return at once.

    `on_message` may raise InvalidFrame, and the peer is disconnected for it; anything else it raises is a bug of
    this node and goes to the event loop's exception handler.
    """

    def on_message(self, peer: str, message: WireMessage) -> None:
        """`peer` said `message`: anything but greetings, pings and replies to `request`."""

    def on_connected(self, peer: str) -> None:
        """Messages reach `peer` from now on."""

    def on_disconnected(self, peer: str) -> None:
        """Messages do not reach `peer` any more; those not yet received may be lost."""


class Transport(Protocol):
    """Authenticated links to the members, which heal by themselves. Nothing here ever waits for a slow peer."""

    async def start(self) -> None:
        """Listening, and dialling has begun. Raise ConfigError where it cannot listen."""

    async def close(self) -> None:
        """All links are closed and nothing runs any more."""

    @property
    def connected(self) -> tuple[str, ...]:
        """The ids of the peers that messages reach now, in ascending order."""

    def send(self, peer: str, message: WireMessage) -> bool:
        """Return whether `message` was queued: False when `peer` is not connected or its queue is full."""

    def broadcast(self, message: WireMessage) -> None:
        """`message` is queued for every connected peer."""

    async def request(self, peer: str, message: Request, timeout_s: float) -> Reply:
        """Return the reply to `message`, whose `request` number is set here.

        Raise Unavailable: `peer_gone`, `peer_timeout`, `peer_busy`.
        """

    def peers(self) -> tuple[PeerInfo, ...]:
        """Every other member with the state of its link, in the members' order."""

    def refusals(self) -> Mapping[str, int]:
        """How many connections ended or failed since the start, by reason code."""

    def set_contracts(self, contracts_hash: bytes) -> None:
        """Whoever is greeted from now on is told this hash of the contracts that are active here."""

    def set_members(self, members: Sequence[MemberConfig]) -> None:
        """Only `members` are spoken to from now on; links of removed members, and under old keys, are closed."""


class Timing(msgspec.Struct, frozen=True):
    """The clocks of the links, in seconds.

    A dialler retries after `retry_first_s`, doubling to `retry_cap_s`, each with jitter; it begins anew after a
    link that stood for `stable_s`. Who should be dialled and is not for about `fallback_s` dials itself, for
    the first time `fallback_first_s` after its start: its peers, which saw it go, may be between two attempts.
    Links are pinged every `ping_s`, and given up when nothing came for `silence_s`, or nothing could be written for
    as long.
    """

    connect_s: float = 5.0
    greeting_s: float = 5.0
    retry_first_s: float = 0.05
    retry_cap_s: float = 2.0
    stable_s: float = 5.0
    fallback_first_s: float = 0.25
    fallback_s: float = 5.0
    ping_s: float = 2.0
    silence_s: float = 10.0
