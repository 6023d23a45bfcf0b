"""What must hold at every step, judged from outside: on what a member's disk has and on what it sends.

Nothing here asks the node. Slots, certificates, balances and fates are read from durable bytes and from messages.
"""

import itertools
from collections import Counter
from collections.abc import Iterable

from consensus.codec import decode
from consensus.effects import Record
from consensus.members import Members
from consensus.messages import Certificate, NewView, PrePrepare, ViewChange, Vote, VoteKind, vote_bytes
from contracts.lifecycle import Lifecycle
from contracts.settlement import Account, Supply
from contracts.state_keys import encode_component
from node.config import NetworkConfig
from node.ledger import BlockBody, Header, HeadRecord, Transaction
from node.store.layout import META_HEAD, body_key, number, record_slot
from node.wire import ConsensusMessage, WireMessage
from tests.simulation.checks import Violation
from tests.simulation.nodes.disk import Contents, Rows
from tests.simulation.nodes.founding import verify

SIZE_MAX = 8 * 1024 * 1024
ACCOUNTS = b"s" + encode_component("settlement") + encode_component("accounts")
SUPPLIES = b"s" + encode_component("settlement") + encode_component("supplies")


class Decided:
    """What all members must agree on at one height."""

    __slots__ = ("digest", "state_root", "transactions", "view", "where")

    def __init__(self, head: HeadRecord, where: str) -> None:
        self.digest = head.digest
        self.state_root = head.state_root
        self.where = where
        self.view = head.certificate.view if head.certificate is not None else 0
        """In which the first that applied it saw it decided."""
        self.transactions: tuple[bytes, ...] = ()


class Rules:
    """Every rule, how often it was judged (`judged`), and what was learnt: blocks by height, transactions by id."""

    def __init__(self, network: NetworkConfig) -> None:
        self.judged: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.decided: dict[int, Decided] = {}
        self.final: dict[bytes, int] = {}
        self.violation: Violation | None = None
        """The first rule that was broken."""
        self.time_ms = 0
        """The newest block's time."""
        self._requests: dict[tuple[str, str], bytes] = {}
        self._network = network
        self._lists: dict[int, Members] = {}
        """By height: who decides it, as the head below says. Without an entry, those of the definition."""
        self._slots: dict[tuple[str, VoteKind, int, int], bytes] = {}
        self._voted: dict[tuple[str, int], int] = {}
        """(member, height) to the highest view in which it was seen to vote, as far as its disk knows of it."""
        self._certificates: dict[Certificate, bool] = {}
        self._versions: dict[int, bytes] = {}
        """Which versions of contracts the state after each block has."""
        self._codes: dict[bytes, bytes] = {}

    def require(self, rule: str, holds: bool, *detail: object) -> None:
        """Count one judgement of `rule`; raise Violation when it does not hold."""
        self.judged[rule] += 1
        if not holds:
            violation = Violation(rule, " ".join(str(part) for part in detail))
            # A node's own tasks may be on the stack, and they catch what is raised here.
            self.violation = self.violation or violation
            raise violation

    # --- what is durable ---------------------------------------------------------------------------------

    def on_write(self, member: str, contents: Contents, before: int, rows: Rows) -> None:
        """Judge a batch that `contents` has now; `before` is the height of the head before it."""
        heads = [value for key, value in rows if key[:1] == b"h" and value is not None]
        if not heads:
            return
        self.require("one block a batch", len(heads) == 1, member)
        head = decode(heads[0], HeadRecord, size_max=SIZE_MAX)
        where = f"{member} h{head.height} {head.digest.hex()[:8]}"
        if head.height == 0:
            return
        self.require("heights only grow by one", head.height == before + 1, where, "on", before)
        self.require("head and block in one batch", height_of(contents) == head.height, where)
        certificate = head.certificate
        proven = certificate is not None and self._proven(certificate, head)
        self.require("certified", proven, where, certificate)
        assert certificate is not None
        voted = self._voted.get((member, head.height), 0)
        self.require("start view", head.start_view >= max(certificate.view, voted), where, head.start_view, voted)
        if voted > certificate.view:
            self.reached["voted above the view that decided"] += 1
        known = self.decided.get(head.height)
        if known is None:
            self._lists[head.height + 1] = head.members
            if head.members != self.deciders(head.height):
                self._note_boundary(head)
            known = self.decided[head.height] = Decided(head, where)
            self._on_new_height(where, contents, known, head)
        self.require("agreement", known.digest == head.digest, where, "but", known.where)
        self.require("equal state roots", known.state_root == head.state_root, where, "but", known.where)

    def _note_boundary(self, head: HeadRecord) -> None:
        """Count what a block that changes the list comes across."""
        old, view = self.deciders(head.height), head.certificate.view if head.certificate is not None else 0
        self.reached["the list changed"] += 1
        if view > 0:
            self.reached["the list changed in a later view"] += 1
        primary = old.id(old.primary(head.height + 1, view, self._network.parameters.rotation_heights))
        if head.members.index(primary) is None:
            self.reached["the next primary left with the list"] += 1

    def _proven(self, certificate: Certificate, head: HeadRecord) -> bool:
        if certificate not in self._certificates:
            members = self.deciders(head.height)
            indices = [index for index, _ in certificate.signatures]
            data = vote_bytes(self._network.network_id, VoteKind.COMMIT, certificate.view, head.height, head.digest)
            quorum = (members.n + (members.n - 1) // 3) // 2 + 1
            self._certificates[certificate] = (
                (certificate.kind, certificate.height, certificate.digest)
                == (VoteKind.COMMIT, head.height, head.digest)
                and len(indices) >= quorum
                and all(low < high for low, high in itertools.pairwise(indices))
                and all(verify(members.key(index), data, signature) for index, signature in certificate.signatures)
            )
        return self._certificates[certificate]

    def _on_new_height(self, where: str, contents: Contents, known: Decided, head: HeadRecord) -> None:
        data = contents.get(body_key(head.height, head.digest))
        self.require("a head has its body", data is not None, where)
        assert data is not None
        body = decode(data, BlockBody, size_max=SIZE_MAX)
        parent = self.decided.get(head.height - 1)
        if parent is not None:
            self.require("chain", body.header.parent == parent.digest, where)
        self.time_ms = max(self.time_ms, head.time_ms)
        if body.quarantined:
            self.reached["a quarantined position"] += 1
        ids: list[bytes] = []
        for raw in body.transactions:
            transaction = Transaction.decode(raw)
            request = (transaction.body.sender, transaction.body.request_id)
            fresh = transaction.tx_id not in self.final and request not in self._requests
            self.require("a request takes effect once", fresh, where, *request)
            in_time = head.time_ms <= transaction.body.expires_at_ms
            self.require("no block contains what expired", in_time, where, *request)
            self.final[transaction.tx_id] = head.height
            self._requests[request] = transaction.tx_id
            ids.append(transaction.tx_id)
        known.transactions = tuple(ids)
        self._judge_version(where, contents, body.header)
        if head.height > 1:
            self._judge_money(where, contents)

    def _judge_version(self, where: str, contents: Contents, header: Header) -> None:
        """The code that made the block is that of the versions in the state before it, and of no others."""
        after = contents.get(b"s" + Lifecycle.versions.prefix)
        assert after is not None
        before = self._versions.get(header.height - 1)
        self._versions[header.height] = after
        if before is None:
            return
        code = self._codes.setdefault(before, header.contracts_hash)
        self.require("one version a height", code == header.contracts_hash, where)
        self.require("one version a height", list(self._codes.values()).count(code) == 1, where)
        self.reached["a contract changed its version"] += after != before

    def _judge_money(self, where: str, contents: Contents) -> None:
        """What lies on the accounts is what was issued and not redeemed, and nobody has less than nothing."""
        accounts = [decode(data, Account, size_max=SIZE_MAX) for data in _below(contents, ACCOUNTS)]
        supplies = [decode(data, Supply, size_max=SIZE_MAX) for data in _below(contents, SUPPLIES)]
        total = sum(account.balance for account in accounts)
        supply = sum(item.issued - item.redeemed for item in supplies)
        self.require("money is neither made nor lost", total == supply, where, total, "of", supply)
        self.require("nobody owes", all(account.balance >= account.held >= 0 for account in accounts), where)

    def deciders(self, height: int) -> Members:
        """Who decides that height."""
        return self._lists.get(height, self._network.validators)

    def forget(self, member: str) -> None:
        """The member has lost its disk: it keeps its word, but need not remember in which views it voted."""
        for key in [key for key in self._voted if key[0] == member]:
            del self._voted[key]

    def committed(self, member: str, height: int) -> bool:
        """Whether the member has sent a commit vote at that height."""
        return any((member, VoteKind.COMMIT, height, view) in self._slots for view in range(8))

    def request_used(self, sender: str, request_id: str) -> bytes | None:
        """The final transaction that used this request id."""
        return self._requests.get((sender, request_id))

    # --- what is sent ------------------------------------------------------------------------------------

    def on_sent(self, member: str, contents: Contents, forgetful: bool, message: WireMessage) -> None:
        """Judge what `member` gives to a link. `forgetful`: an older disk was put back under it, unknown to it."""
        if not isinstance(message, ConsensusMessage):
            return
        content = message.message
        if isinstance(content, PrePrepare):
            content = content.vote
        index = (
            self.deciders(content.height).index(member)
            if isinstance(content, Vote | ViewChange | NewView)
            else None
        )
        if isinstance(content, Vote) and content.member == index:
            slot = record_slot_of(content)
            where = f"{member} {content.kind.name} h{content.height} v{content.view}"
            self._judge_durable(where, contents, content.height, slot, content.signature, content.view)
            key = (member, content.kind, content.height, content.view)
            if not forgetful:
                known = self._slots.setdefault(key, content.digest)
                self.require("one vote per slot", known == content.digest, where)
                voted = (member, content.height)
                self._voted[voted] = max(self._voted.get(voted, 0), content.view)
        elif isinstance(content, ViewChange) and content.member == index:
            where = f"{member} view change h{content.height} v{content.view}"
            self._judge_durable(where, contents, content.height, b"3", content.signature, content.view)
            self.reached["view change"] += 1
        elif isinstance(content, NewView) and content.member == index:
            where = f"{member} new view h{content.height} v{content.view}"
            self._judge_durable(where, contents, content.height, b"4", content.signature, content.view)
            self.reached["new view"] += 1

    def _judge_durable(
        self, where: str, contents: Contents, height: int, slot: bytes, signature: bytes, view: int
    ) -> None:
        """The record lies on the disk, or a newer one of its kind, or the height is over."""
        record = contents.get(b"c" + number(height) + slot)
        durable = height <= height_of(contents) or (record is not None and signature in record)
        if not durable and record is not None and slot in (b"3", b"4"):
            newer: Record = decode(record[8:], Record, size_max=SIZE_MAX)  # type: ignore[arg-type]
            durable = record_slot(newer)[2] > view
        self.require("durable before sent", durable, where)


def record_slot_of(vote: Vote) -> bytes:
    """The slot of a vote's record in the store."""
    return b"1" + bytes((vote.kind,)) + number(vote.view)


def height_of(contents: Contents) -> int:
    """The height of the head that lies there; 0 where none does."""
    return int.from_bytes(contents.get(META_HEAD) or b"", "big")


def _below(contents: Contents, prefix: bytes) -> Iterable[bytes]:
    return (value for _, value in contents.scan(prefix, prefix + b"\xff"))
