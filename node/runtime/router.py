"""Brings each message of a peer to the part that it is for, and the replica's messages to the peers."""

from collections.abc import Callable

from consensus.effects import Connected, Input, Received
from consensus.messages import Message, Status
from node.gossip import Gossip
from node.peers import Transport
from node.runtime.code_agreement import CodeAgreement
from node.runtime.health import Health
from node.runtime.reports import Reports
from node.sync import BlockServer
from node.sync.snapshot_server import SnapshotServer
from node.wire import (
    ConsensusMessage,
    FetchBlocks,
    FetchChunk,
    FetchExecution,
    FetchManifest,
    FetchPayload,
    FetchSnapshot,
    FetchTransactions,
    MemberReport,
    TransactionBatch,
    TransactionIds,
    WireMessage,
)


class Router:
    """The transport's handler and the driver's links. Until `connect` messages are dropped: nobody is there yet."""

    def __init__(self) -> None:
        self._parts: tuple[Transport, Gossip, BlockServer, Callable[[Input], None]] | None = None
        self._code: CodeAgreement | None = None
        self._snapshots: SnapshotServer | None = None
        self._health: tuple[Health, Reports] | None = None

    def connect(
        self, transport: Transport, gossip: Gossip, blocks: BlockServer, give: Callable[[Input], None]
    ) -> None:
        """Messages flow between these from now on."""
        self._parts = (transport, gossip, blocks, give)

    def connect_code(self, code: CodeAgreement) -> None:
        """Whoever asks which code runs here is answered by `code` from now on."""
        self._code = code

    def connect_snapshots(self, snapshots: SnapshotServer) -> None:
        """Whoever joins is served by `snapshots` from now on."""
        self._snapshots = snapshots

    def connect_health(self, health: Health, reports: Reports) -> None:
        """Reports go to `reports` from now on; `health` sees links and heartbeats."""
        self._health = (health, reports)

    def on_message(self, peer: str, message: WireMessage) -> None:
        """`peer` said `message`."""
        if self._parts is None:
            return
        _, gossip, blocks, give = self._parts
        if isinstance(message, ConsensusMessage):
            if isinstance(message.message, Status) and self._health is not None:
                self._health[0].on_status(peer, message.message)
            give(Received(peer, message.message))
        elif isinstance(message, MemberReport):
            if self._health is not None:
                self._health[1].receive(peer, message)
        elif isinstance(message, TransactionBatch):
            gossip.on_batch(peer, message)
        elif isinstance(message, TransactionIds):
            gossip.on_ids(peer, message)
        elif isinstance(message, FetchTransactions):
            gossip.on_fetch(peer, message)
        elif isinstance(message, FetchBlocks):
            blocks.on_fetch_blocks(peer, message)
        elif isinstance(message, FetchPayload):
            blocks.on_fetch_payload(peer, message)
        elif isinstance(message, FetchExecution):
            blocks.on_fetch_execution(peer, message)
        elif isinstance(message, FetchManifest) and self._code is not None:
            self._code.on_fetch(peer, message)
        elif isinstance(message, FetchSnapshot | FetchChunk) and self._snapshots is not None:
            self._snapshots.on_question(peer, message)

    def on_connected(self, peer: str) -> None:
        """A link to `peer` is up."""
        if self._parts is not None:
            _, gossip, _, give = self._parts
            give(Connected(peer))
            gossip.on_connected(peer)
        if self._health is not None:
            self._health[0].on_connected(peer)

    def on_disconnected(self, peer: str) -> None:
        """A link is gone: whoever waited for an answer is told by the transport."""

    def send_consensus(self, peer: str, message: Message) -> None:
        """Queue `message` for one peer; dropped when it is not connected."""
        if self._parts is not None:
            self._parts[0].send(peer, ConsensusMessage(message))

    def broadcast_consensus(self, message: Message) -> None:
        """Queue `message` for every connected peer."""
        if self._parts is not None:
            self._parts[0].broadcast(ConsensusMessage(message))
