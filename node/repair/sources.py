"""Where missing blocks and receipts come from: archives on this disk, and the other members.

The peers are asked over their own protocol, with this node's TLS key, and not over HTTP: the API of another member
listens on its own machine alone, while every member's peer port is open to this one. The node itself is stopped, so
its key is in one place. Whatever comes is proven by whoever asked before it is written.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from consensus.codec import CodecError, decode
from consensus.messages import INSTANCE_SIZE
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from node.archive import ArchivedBlock, ArchiveReader
from node.archive.shelf import ArchiveShelf
from node.config import NetworkConfig, NodeConfig
from node.errors import HansaError, InvalidFrame, Unavailable
from node.keys import SigningKey
from node.ledger import CertifiedBlock
from node.peers import Peers
from node.sync import fetch_execution
from node.wire import BLOCK_SIZE_MAX, BLOCKS_BYTES_MAX, Blocks, FetchBlocks, WireMessage

T = TypeVar("T")

CONNECT_TIMEOUT_S = 15.0
"""How long a question waits for members that are not connected, once those who are had no right answer."""
ANSWER_TIMEOUT_S = 15.0
RANGE_MAX = 64
"""So many blocks are asked for at once, when one after the other is missing; a single one is asked for alone."""
AHEAD_BYTES_MAX = 2 * BLOCKS_BYTES_MAX
"""So much of what came along with a block is kept for the next questions."""


class BlockSource(Protocol):
    """Gives what is asked for, or nothing; it proves nothing."""

    @property
    def name(self) -> str:
        """Where it looks, for people."""

    def blocks(self, height: int) -> Iterable[CertifiedBlock]:
        """Return what is said to be the block at `height`, by each that answered."""

    def receipts(self, height: int) -> Iterable[tuple[bytes, ...]]:
        """Return what is said to be the receipts of the block at `height`, by each that answered."""

    def account(self) -> str:
        """Return who was asked the last question and had no right answer, and who could not be asked."""

    def close(self) -> None:
        """Nothing runs any more."""


class ArchiveSource:
    """The archive files in one directory."""

    name = "archives on this disk"

    def __init__(self, directory: Path) -> None:
        """Raise ConfigError when `directory` cannot be read."""
        self._shelf = ArchiveShelf(directory)
        self._shelf.files()
        self._open: ArchiveReader | None = None

    def blocks(self, height: int) -> Iterable[CertifiedBlock]:
        """Return the block at `height` of each archive file that has it."""
        return [found.block for found in self._at(height)]

    def receipts(self, height: int) -> Iterable[tuple[bytes, ...]]:
        """Return the receipts of the block at `height` of each archive file that has it."""
        return [found.receipts.receipts for found in self._at(height)]

    def account(self) -> str:
        """Return that no file had what was asked for."""
        return f"{self.name} had none that is right"

    def _at(self, height: int) -> list[ArchivedBlock]:
        """The block of each file that can be read; the one last used stays open, for its neighbours."""
        found: list[ArchivedBlock] = []
        for item in self._shelf.files():
            if not item.first <= height <= item.last:
                continue
            try:
                if self._open is None or self._open.path != item.path:
                    self.close()
                    self._open = ArchiveReader(item.path)
                found.append(self._open.block(height))
            except HansaError:
                continue
        return found

    def close(self) -> None:
        """No file is open."""
        if self._open is not None:
            self._open.close()
            self._open = None


class PeerSource:
    """The other members, connected to as this node's member from the first question on."""

    name = "the other members"

    def __init__(self, node: NodeConfig, network: NetworkConfig, open_tls_key: Callable[[], SigningKey]) -> None:
        """`open_tls_key` is asked when the first block is: only then are keys needed."""
        self._node = node
        self._network = network
        self._open_tls_key = open_tls_key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._peers: Peers | None = None
        self._asked: dict[str, str] = {}
        self._ahead: dict[str, dict[int, bytes]] = {}
        self._following = self._range = 0
        """The height after the one last asked for (0: none was), and how many were asked for at once."""

    def blocks(self, height: int) -> Iterable[CertifiedBlock]:
        """Yield the block at `height` of one member after the other; the next is only asked when it is wanted.

        Each time that the next height is asked for, twice as many blocks are fetched at once.
        """
        self._range = min(2 * self._range, RANGE_MAX) if height == self._following else 1
        self._following = height + 1
        return self._ask(lambda peers, peer: self._block(peers, peer, height))

    async def _block(self, peers: Peers, peer: str, height: int) -> CertifiedBlock:
        data = self._ahead.get(peer, {}).pop(height, None)
        if data is None:
            data, *ahead = await _blocks(peers, peer, height, self._range)
            self._ahead[peer] = dict(enumerate(ahead, height + 1))
            if sum(len(block) for kept in self._ahead.values() for block in kept.values()) > AHEAD_BYTES_MAX:
                self._ahead = {peer: self._ahead[peer]}
        try:
            return decode(data, CertifiedBlock, size_max=BLOCK_SIZE_MAX)
        except CodecError as error:
            raise InvalidFrame("bad_catch_up", f"{peer}: block {height} cannot be read") from error

    def receipts(self, height: int) -> Iterable[tuple[bytes, ...]]:
        """Yield the receipts of the block at `height` of one member after the other."""
        return self._ask(lambda peers, peer: _receipts(peers, peer, height))

    def close(self) -> None:
        """No link is open any more."""
        if self._loop is None or self._thread is None:
            return
        if self._peers is not None:
            self._run(self._peers.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = self._peers = None

    def account(self) -> str:
        """Return which member was asked the last question, with what success, and which was not reached."""
        if self._peers is None:
            return f"{self.name} were not asked"
        return "; ".join(
            f"{peer.id} was asked: {self._asked[peer.id]}"
            if peer.id in self._asked
            else f"{peer.id} was not reached ({peer.last_error or 'no answer'})"
            for peer in self._peers.peers()
        )

    def _ask(self, question: Callable[[Peers, str], Coroutine[Any, Any, T]]) -> Iterator[T]:
        """Yield answers, as long as they are wanted, until every member was asked that can be reached in time.

        Members that do not answer, or answer nonsense, are passed over. Raise Unavailable when none was reached.
        """
        peers = self._started()
        self._asked = {}
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while (peer := self._run(self._next(peers, deadline_s))) is not None:
            try:
                answer = self._run(question(peers, peer))
            except HansaError as error:
                self._asked[peer] = f"it gave none ({error})"
                continue
            self._asked[peer] = "it had none that is right"
            yield answer
        if not self._asked:
            said = "; ".join(f"{peer.id}: {peer.last_error or 'no answer'}" for peer in peers.peers())
            raise Unavailable("peer_gone", f"no member could be reached within {CONNECT_TIMEOUT_S:g} s ({said})")

    def _started(self) -> Peers:
        """The links, which come up by themselves from the first call on."""
        if self._peers is None:
            tls_key = self._open_tls_key()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="repair peers", daemon=True)
            self._thread.start()
            self._peers = self._run(self._start(tls_key))
        return self._peers

    async def _start(self, tls_key: SigningKey) -> Peers:
        peers = Peers(
            network=self._network,
            member=self._node.member,
            tls_key=tls_key,
            listen=self._node.listen,
            contracts_hash=Engine(CONTRACTS, FURTHER).contracts_hash(),
            instance=secrets.token_bytes(INSTANCE_SIZE),
            handler=_Deaf(),
            log=structlog.wrap_logger(structlog.PrintLogger(), processors=[_drop]),
        )
        await peers.start()
        return peers

    async def _next(self, peers: Peers, deadline_s: float) -> str | None:
        """A connected member that was not asked yet; waits for those not connected, and gives None at the end.

        Links come up one after the other: the member that has what is missing may not be the first of them.
        """
        members = {peer.id for peer in peers.peers()}
        while members - self._asked.keys():
            waiting = (peer for peer in peers.connected if peer not in self._asked)
            if (peer := next(waiting, None)) is not None:
                return peer
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.05)
        return None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Deaf:
    """Takes no part: what the peers say besides answers is not heard."""

    def on_message(self, peer: str, message: WireMessage) -> None:
        """Nothing happens."""

    def on_connected(self, peer: str) -> None:
        """Nothing happens."""

    def on_disconnected(self, peer: str) -> None:
        """Nothing happens."""


async def _blocks(peers: Peers, peer: str, first: int, count: int) -> tuple[bytes, ...]:
    """At least one of `count` blocks from `first` on, as `peer` has them."""
    reply = await peers.request(peer, FetchBlocks(0, first, first + count - 1), ANSWER_TIMEOUT_S)
    if not isinstance(reply, Blocks) or not 1 <= len(reply.blocks) <= count:
        raise InvalidFrame("bad_catch_up", f"{peer} does not send block {first}")
    return reply.blocks


async def _receipts(peers: Peers, peer: str, height: int) -> tuple[bytes, ...]:
    receipts, _ = await fetch_execution(peers, peer, height)
    return receipts


def _drop(logger: object, name: str, event: object) -> Any:
    raise structlog.DropEvent
