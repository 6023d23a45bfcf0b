"""Catch-up over in-memory links: real blocks, real certificates, hostile peers.

More than 500 lines because the network of in-memory peers stands beside what it is for.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec
import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from consensus.codec import encode
from consensus.effects import Head
from consensus.members import Members, Validator
from consensus.messages import Certificate, VoteKind, vote_bytes
from node.errors import HansaError, InvalidBlock, InvalidFrame, NotFound, Unavailable
from node.ledger import (
    BlockBody,
    CertifiedBlock,
    Header,
    Proposal,
    Transaction,
    members_hash,
    merkle_root,
    sha256,
)
from node.sync import (
    BlockServer,
    CatchUp,
    ReadyBlock,
    catch_up,
    executions,
    fetch_execution,
    fetch_payload,
    fetching,
    server,
    sources,
)
from node.wire import (
    BLOCK_SIZE_MAX,
    ROWS_MAX,
    ROWS_TOTAL_MAX,
    Blocks,
    Execution,
    FetchBlocks,
    FetchExecution,
    FetchPayload,
    PayloadReply,
)

NETWORK = "net-1"
GENESIS = sha256(b"genesis")
KEYS = {f"m{index}": SigningKey(bytes([index]) * 32) for index in range(6)}
Question: TypeAlias = FetchBlocks | FetchPayload | FetchExecution
Serve = Callable[[Question], Awaitable[object]]


def member_list(*names: str) -> Members:
    return Members(tuple(Validator(name, bytes(KEYS[name].verify_key)) for name in names))


FOUNDERS = member_list("m0", "m1", "m2", "m3")
SUCCESSORS = member_list("m2", "m3", "m4", "m5")


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def certify(
    digest: bytes,
    height: int,
    members: Members,
    signers: Sequence[int] = (0, 1, 2),
    kind: VoteKind = VoteKind.COMMIT,
    network: str = NETWORK,
) -> Certificate:
    signed = vote_bytes(network, kind, 0, height, digest)
    signatures = tuple((index, KEYS[members.id(index)].sign(signed).signature) for index in signers)
    return Certificate(kind, 0, height, digest, signatures)


def state_after(state: bytes, body: BlockBody) -> bytes:
    """What stands for execution: it depends on everything in the block that a peer could alter."""
    return sha256(state + b"".join(body.transactions) + bytes(body.quarantined))


def make_chain(
    length: int, change_at: int = 1_000_000, size: int = 10, network: str = NETWORK
) -> list[CertifiedBlock]:
    """Blocks 1 … `length`; from height `change_at` + 1 on the successors decide."""
    blocks: list[CertifiedBlock] = []
    parent, state = GENESIS, GENESIS
    for height in range(1, length + 1):
        transactions = (b"%d" % height, bytes(size))
        draft = Header(
            network, height, parent, 1000 + height, "m0", merkle_root(transactions), GENESIS, GENESIS,
            members_hash(SUCCESSORS if height >= change_at else FOUNDERS), GENESIS,
        )  # fmt: skip
        state = state_after(state, BlockBody(draft, transactions, ()))
        header = msgspec.structs.replace(draft, state_root=state)
        parent = header.digest
        members = SUCCESSORS if height > change_at else FOUNDERS
        certificate = certify(parent, height, members, network=network)
        blocks.append(CertifiedBlock(BlockBody(header, transactions, ()), certificate))
    return blocks


class OwnChain:
    """Stands for the store and the executor: applies in memory what fits its head and executes alike."""

    def __init__(self, blocks: Sequence[CertifiedBlock] = (), change_at: int = 1_000_000) -> None:
        self.change_at = change_at
        self.blocks: list[CertifiedBlock] = []
        self.state = GENESIS
        self.head = Head(0, GENESIS, None, 0, FOUNDERS)
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_gate = False
        """Whether a block is being applied, held up by the gate."""
        for block in blocks:
            self.apply(block)

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        return []

    async def replay(self, take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
        while (ready := await take()) is not None:
            assert ready[0].body.header.height == self.head.height + 1, "nobody else moves the head meanwhile"
            await asyncio.sleep(0)
            self.at_gate = not self.gate.is_set()
            await self.gate.wait()
            if ready[0].body.header.height <= self.head.height:
                # The test lets consensus be quicker.
                return
            self.apply(ready[0])

    def apply(self, block: CertifiedBlock) -> None:
        """The head moves by `block`, as it does when consensus decides it."""
        header = block.body.header
        assert (header.height, header.parent) == (self.head.height + 1, self.head.digest)
        state = state_after(self.state, block.body)
        if state != header.state_root:
            raise InvalidBlock("internal_error", f"state root of block {header.height}")
        self.state = state
        members = SUCCESSORS if header.height >= self.change_at else FOUNDERS
        self.head = Head(header.height, header.digest, block.certificate, 0, members)
        self.blocks.append(block)

    @property
    def head_height(self) -> int:
        return self.head.height

    first_height = 1

    def execution(self, height: int) -> tuple[Sequence[bytes], Sequence[tuple[bytes, bytes | None]] | None] | None:
        return None

    def certified_block(self, height: int) -> bytes | None:
        return encode(self.blocks[height - 1]) if height <= len(self.blocks) else None

    def payload(self, height: int, digest: bytes) -> bytes | None:
        body = self.blocks[height - 1].body if height <= len(self.blocks) else None
        return encode(Proposal(body.header, (), ())) if body is not None and body.header.digest == digest else None


class Net:
    """The transport of the node under test: `peers` maps a name to what answers its requests."""

    def __init__(self) -> None:
        self.peers: dict[str, Serve] = {}
        self.asked: list[tuple[str, Question]] = []

    @property
    def connected(self) -> Iterable[str]:
        return sorted(self.peers)

    def send(self, peer: str, message: Blocks | PayloadReply | Execution) -> bool:
        return False

    async def request(self, peer: str, message: Question, timeout_s: float) -> object:
        self.asked.append((peer, message))
        if peer not in self.peers:
            raise Unavailable("peer_gone", peer)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.peers[peer](message)
        except TimeoutError as error:
            raise Unavailable("peer_timeout", "no answer in time") from error

    def asked_of(self, peer: str) -> list[tuple[int, int]]:
        return [
            (item.first, item.last) for name, item in self.asked if name == peer and isinstance(item, FetchBlocks)
        ]


class Answering:
    """A peer with a real BlockServer over `chain`; its answers come back as replies."""

    def __init__(self, chain: OwnChain) -> None:
        self.answers: asyncio.Queue[object] = asyncio.Queue()
        self.failures: list[BaseException] = []
        self.server = BlockServer(self, chain, self.failures.append)

    @property
    def connected(self) -> Iterable[str]:
        return ("asker",)

    def send(self, peer: str, message: Blocks | PayloadReply | Execution) -> bool:
        self.answers.put_nowait(message)
        return True

    async def request(self, peer: str, message: Question, timeout_s: float) -> object:
        raise Unavailable("peer_gone", peer)

    async def __call__(self, message: Question) -> object:
        if isinstance(message, FetchExecution):
            self.server.on_fetch_execution("asker", message)
        else:
            assert isinstance(message, FetchBlocks)
            self.server.on_fetch_blocks("asker", message)
        return await self.answers.get()


def serving(blocks: Sequence[CertifiedBlock | bytes], head: int | None = None, first: int = 1) -> Serve:
    """A peer that answers from a list, whatever it holds."""

    async def answer(message: Question) -> object:
        assert isinstance(message, FetchBlocks)
        wanted = blocks[message.first - 1 : message.last]
        encoded = tuple(item if isinstance(item, bytes) else encode(item) for item in wanted)
        return Blocks(0, encoded, len(blocks) if head is None else head, first)

    return answer


async def silent(message: Question) -> object:
    await asyncio.Event().wait()
    raise AssertionError("never answers")


class Node:
    def __init__(self, chain: OwnChain) -> None:
        self.net = Net()
        self.chain = chain
        self.synced: list[int] = []
        self.after: Callable[[int], None] = lambda height: None
        self.reports: dict[str, list[str]] = defaultdict(list)
        self.failures: list[BaseException] = []
        self.divergences: list[tuple[int, InvalidBlock]] = []
        self.unservable: list[tuple[int, int]] = []
        self.sync = CatchUp(
            self.net, chain, NETWORK, verify,
            self.on_synced,
            lambda peer, error: self.reports[peer].append(error.code),
            lambda block, error: self.divergences.append((block.body.header.height, error)),
            self.failures.append,
            lambda height, first: self.unservable.append((height, first)),
        )  # fmt: skip

    def on_synced(self, head: Head) -> None:
        self.synced.append(head.height)
        self.after(head.height)

    async def reach(self, target: int, peers: Sequence[str] = (), timeout_s: float = 30.0) -> None:
        self.sync.catch_up(target, peers)
        await until(lambda: self.chain.head.height >= target and not self.sync.progress().running, timeout_s)


@asynccontextmanager
async def running(chain: OwnChain | None = None) -> AsyncIterator[Node]:
    before = asyncio.all_tasks()
    node = Node(chain or OwnChain())
    yield node
    await node.sync.close()
    await until(lambda: asyncio.all_tasks() == before)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the condition spans several nodes)
            await asyncio.sleep(0.002)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of catch-up shortened, for tests in which somebody is silent or put aside."""
    monkeypatch.setattr(fetching, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(sources, "ASIDE_S", 0.05)
    monkeypatch.setattr(catch_up, "FAULT_ASIDE_S", 0.1)


CHAIN = make_chain(80)


async def test_catches_up_from_a_real_server_in_growing_ranges_and_reports_each_head() -> None:
    chain = make_chain(300)
    async with running() as node:
        peer = Answering(OwnChain(chain))
        node.net.peers["m1"] = peer
        await node.reach(300, ["m1"])
        assert node.chain.blocks == chain
        assert node.synced == sorted(set(node.synced))
        assert node.synced[-1] == 300
        progress = node.sync.progress()
        assert (progress.from_height, progress.height, progress.target, progress.blocks_total) == (0, 300, 300, 300)
        assert progress.blocks_per_s > 0
        assert progress.asks == ()
        assert progress.problem is None
        assert node.net.asked_of("m1")[:2] == [(1, 32), (33, 96)]
        await peer.server.close()


async def test_target_is_extended_while_running_and_a_lower_one_changes_nothing() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        node.chain.gate.clear()
        node.sync.catch_up(10, ["m1"])
        await until(lambda: node.chain.at_gate and len(node.net.asked) == 1)
        node.sync.catch_up(80, ["m1"])
        node.sync.catch_up(3, ["m1"])
        node.chain.gate.set()
        await until(lambda: node.chain.head.height == 80 and not node.sync.progress().running)
        node.sync.catch_up(80, ["m1"])
        assert not node.sync.progress().running


async def test_blocks_that_consensus_decides_before_their_turn_are_not_handed_on() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        replay, decided = node.chain.replay, iter(CHAIN)

        async def after_others(take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
            if node.chain.head.height < 3:
                node.chain.apply(next(decided))
            await replay(take)

        node.chain.replay = after_others  # type: ignore[method-assign]
        node.sync.catch_up(80, ["m1"])
        await until(lambda: node.chain.head.height == 80)
        assert node.reports == {}
        assert node.failures == []


async def test_target_raised_at_the_very_end_of_a_run_is_not_forgotten() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN[:20])

        def more(height: int) -> None:
            if height == 20:
                node.net.peers["m1"] = serving(CHAIN)
                asyncio.get_running_loop().call_soon(node.sync.catch_up, 80, ["m1"])

        node.after = more
        node.sync.catch_up(20, ["m1"])
        await until(lambda: node.chain.head.height == 80)


async def test_the_next_range_is_fetched_while_this_one_is_executed() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        node.chain.gate.clear()
        node.sync.catch_up(80, ["m1"])
        await until(lambda: node.chain.at_gate and len(node.net.asked) == 2)
        assert node.chain.head.height == 0
        node.chain.gate.set()
        await until(lambda: node.chain.head.height == 80)
        assert node.net.asked_of("m1") == [(1, 32), (33, 96)]


async def test_follows_a_change_of_members_within_a_range() -> None:
    chain = make_chain(40, change_at=15)
    async with running(OwnChain(change_at=15)) as node:
        node.net.peers["m1"] = serving(chain)
        await node.reach(40)
        assert node.reports == {}


@pytest.mark.parametrize("index", [15, 20], ids=["the first block after it", "a later one"])
async def test_former_members_cannot_decide_after_the_change(index: int) -> None:
    """The first one comes with the block that changes them, from the same peer, and fits the members of before."""
    chain = make_chain(40, change_at=15)
    chain[index] = msgspec.structs.replace(
        chain[index], certificate=certify(chain[index].body.header.digest, index + 1, FOUNDERS)
    )
    async with running(OwnChain(change_at=15)) as node:
        node.net.peers["m1"] = serving(chain)
        node.sync.catch_up(40, ["m1"])
        await until(lambda: bool(node.reports["m1"]))
        assert node.chain.head.height == index


def altered(block: CertifiedBlock, **changes: Any) -> CertifiedBlock:
    return CertifiedBlock(msgspec.structs.replace(block.body, **changes), block.certificate)


def recertified(block: CertifiedBlock, *, signers: Sequence[int], **options: Any) -> CertifiedBlock:
    header = block.body.header
    return CertifiedBlock(block.body, certify(header.digest, header.height, FOUNDERS, signers, **options))


def strange(block: CertifiedBlock, **changes: Any) -> CertifiedBlock:
    """The block with another header and a certificate of its strangers for it."""
    header = msgspec.structs.replace(block.body.header, **changes)
    certificate = certify(header.digest, header.height, SUCCESSORS)
    return CertifiedBlock(msgspec.structs.replace(block.body, header=header), certificate)


def miswritten(block: CertifiedBlock, **changes: Any) -> CertifiedBlock:
    """The block with another header that a quorum nevertheless signed for its place."""
    header = msgspec.structs.replace(block.body.header, **changes)
    certificate = certify(header.digest, block.body.header.height, FOUNDERS)
    return CertifiedBlock(msgspec.structs.replace(block.body, header=header), certificate)


VICTIM = CHAIN[9]
SIGNATURES = VICTIM.certificate.signatures
FORGERIES: dict[str, CertifiedBlock | bytes] = {
    "garbage": b"\xc1garbage",
    "empty": b"",
    "cut off": encode(VICTIM)[:-1],
    "trailing bytes": encode(VICTIM) + b"\x00",
    "huge": bytes(BLOCK_SIZE_MAX + 1),
    "another height's block": CHAIN[10],
    "an older block again": CHAIN[8],
    "other transactions": altered(VICTIM, transactions=(b"mine",)),
    "transactions reordered": altered(VICTIM, transactions=VICTIM.body.transactions[::-1]),
    "one transaction missing": altered(VICTIM, transactions=VICTIM.body.transactions[:1]),
    "other header under the certificate": altered(
        VICTIM, header=msgspec.structs.replace(VICTIM.body.header, state_root=GENESIS)
    ),
    "certified by strangers": strange(VICTIM),
    "strangers' fork": strange(VICTIM, parent=GENESIS),
    "header of another network": miswritten(VICTIM, network="net-2"),
    "header of another height": miswritten(VICTIM, height=11),
    "header on another parent": miswritten(VICTIM, parent=GENESIS),
    "header of other transactions": miswritten(VICTIM, tx_root=GENESIS),
    "other network": make_chain(10, network="net-2")[9],
    "signed for another network": recertified(VICTIM, signers=(0, 1, 2), network="net-2"),
    "too few signatures": recertified(VICTIM, signers=(0, 1)),
    "no signatures": recertified(VICTIM, signers=()),
    "one signature three times": recertified(VICTIM, signers=(1, 1, 1)),
    "descending indices": recertified(VICTIM, signers=(2, 1, 0)),
    "prepares instead of commits": recertified(VICTIM, signers=(0, 1, 2), kind=VoteKind.PREPARE),
    "certificate of another block": CertifiedBlock(VICTIM.body, CHAIN[10].certificate),
    "forged signature": CertifiedBlock(
        VICTIM.body,
        msgspec.structs.replace(VICTIM.certificate, signatures=(*SIGNATURES[:2], (3, bytes(64)))),
    ),
    "index out of range": CertifiedBlock(
        VICTIM.body,
        msgspec.structs.replace(VICTIM.certificate, signatures=(*SIGNATURES[:2], (100, SIGNATURES[2][1]))),
    ),
    "quarantined added": altered(VICTIM, quarantined=(0,)),
}


@pytest.mark.parametrize("own_height", [0, 9])
@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_block_is_refused_its_sender_reported_and_another_asked(
    name: str, own_height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_up, "PAUSE_S_MAX", 0.02)
    forged: list[CertifiedBlock | bytes] = [*CHAIN[:9], FORGERIES[name]]
    async with running(OwnChain(CHAIN[:own_height])) as node:
        node.net.peers["m1"] = serving(forged)
        node.sync.catch_up(20, ["m1"])
        await until(lambda: bool(node.reports["m1"]))
        [code] = node.reports["m1"]
        # What stands on another parent may come from members who went on without these.
        assert code in ("bad_catch_up", "other_history")
        assert node.chain.head.height in (0, 9), "nothing of it was applied but what was proven"
        [aside] = node.sync.progress().aside
        assert aside.peer == "m1"
        assert aside.remaining_s > 5
        node.net.peers["m2"] = serving(CHAIN)
        await until(lambda: node.chain.head.height >= 20)
        assert node.chain.blocks[:20] == CHAIN[:20]
        assert node.reports.keys() == {"m1"}
        assert node.failures == []


@pytest.mark.parametrize(
    "reply",
    [
        Blocks(0, tuple(map(encode, CHAIN[1:10])), 80, 1),
        Blocks(0, (encode(CHAIN[0]), encode(CHAIN[2])), 80, 1),
        Blocks(0, (encode(CHAIN[1]), encode(CHAIN[0])), 80, 1),
        Blocks(0, tuple(map(encode, CHAIN)), 80, 1),
        PayloadReply(0, None),
        None,
    ],
    ids=["late start", "gap", "reordered", "more than asked", "other kind", "nothing at all"],
)
async def test_an_answer_of_the_wrong_shape_is_refused(reply: object) -> None:
    async def answer(message: Question) -> object:
        return reply

    async with running() as node:
        node.net.peers["m1"] = answer
        node.sync.catch_up(20, ["m1"])
        await until(lambda: node.reports["m1"] == ["bad_catch_up"])
        assert node.chain.head.height == 0


async def test_a_cut_answer_is_progress() -> None:
    async def one_by_one(message: Question) -> object:
        assert isinstance(message, FetchBlocks)
        return Blocks(0, (encode(CHAIN[message.first - 1]),), 80, 1)

    async with running() as node:
        node.net.peers["m1"] = one_by_one
        await node.reach(30)
        assert node.reports == {}


@pytest.mark.usefixtures("hurried")
async def test_a_peer_that_falls_silent_or_vanishes_within_a_range_is_replaced() -> None:
    async with running() as node:
        node.net.peers["m1"] = silent
        node.net.peers["m2"] = serving(CHAIN[:40], head=80)
        node.sync.catch_up(80, ["m1", "m2"])
        await until(lambda: node.chain.head.height == 40)
        assert node.net.asked_of("m1"), "the silent one was asked, and did not stop the others"
        del node.net.peers["m2"]
        node.net.peers["m3"] = serving(CHAIN)
        await until(lambda: node.chain.head.height == 80)
        assert node.reports == {}, "slowness and absence are no lies"


@pytest.mark.usefixtures("hurried")
async def test_a_large_range_over_a_slow_link_is_asked_for_in_smaller_parts() -> None:
    async def slow(message: Question) -> object:
        assert isinstance(message, FetchBlocks)
        await asyncio.sleep(0.01 * (message.last - message.first + 1))
        return await serving(CHAIN)(message)

    async with running() as node:
        node.net.peers["m1"] = slow
        await node.reach(16, ["m1"])


async def test_a_claimed_head_is_never_taken_for_true() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN[:10], head=2**62)
        await node.reach(10, ["m1"])
        assert node.chain.head.height == 10
        assert node.synced[-1] == 10
        node.sync.catch_up(11, ["m1"])
        await until(lambda: bool(node.sync.progress().aside))
        assert node.sync.progress().aside[0].reason == "does not serve block 11"
        asked = len(node.net.asked)
        node.net.peers["m2"] = serving(CHAIN)
        await until(lambda: node.chain.head.height >= 11)
        assert len(node.net.asked) <= asked + 3


async def test_consensus_may_overtake_catch_up() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        node.chain.gate.clear()
        node.sync.catch_up(80, ["m1"])
        await until(lambda: node.chain.at_gate and len(node.net.asked) == 2)
        for block in CHAIN[:50]:
            node.chain.apply(block)
        node.chain.gate.set()
        await until(lambda: node.chain.head.height == 80)
        assert node.reports == {}


@pytest.mark.usefixtures("hurried")
async def test_a_node_that_alone_computes_other_roots_says_so_once_two_members_sent_the_same_block() -> None:
    async with running() as node:
        node.chain.state = sha256(b"corrupted state")
        node.net.peers["m1"] = serving(CHAIN)
        node.net.peers["observer"] = serving(CHAIN)
        node.sync.catch_up(80, ["m1"])
        await until(lambda: min(len(node.reports["m1"]), len(node.reports["observer"])) >= 2)
        assert node.divergences == [], "one member and strangers are no proof"
        node.net.peers["m2"] = serving(CHAIN)
        await until(lambda: len(node.divergences) == 1 and not node.sync.progress().running)
        assert node.divergences[0][0] == 1
        asked = len(node.net.asked)
        node.sync.catch_up(80, ["m1"])
        assert not node.sync.progress().running, "what it would fetch it could not execute"
        assert len(node.net.asked) == asked
        assert node.failures == []


@pytest.mark.usefixtures("hurried")
async def test_a_block_that_is_applied_after_all_starts_catch_up_again() -> None:
    async with running() as node:
        state, node.chain.state = node.chain.state, sha256(b"corrupted state")
        node.net.peers.update(m1=serving(CHAIN), m2=serving(CHAIN))
        node.sync.catch_up(80, ["m1"])
        await until(lambda: len(node.divergences) == 1 and not node.sync.progress().running)
        # Consensus itself came to the certified roots: what differs from run to run may be right this time.
        node.chain.state = state
        node.chain.apply(CHAIN[0])
        await node.reach(80, ["m1"])
        assert len(node.divergences) == 1


class Executing(OwnChain):
    """A chain that knows what its blocks did: `rows` of the block at each height."""

    def __init__(
        self, rows: dict[int, tuple[Sequence[bytes], Sequence[tuple[bytes, bytes | None]] | None]]
    ) -> None:
        super().__init__()
        self.rows = rows

    def execution(self, height: int) -> tuple[Sequence[bytes], Sequence[tuple[bytes, bytes | None]] | None] | None:
        return self.rows.get(height)


@pytest.mark.parametrize("value_size", [10, 30_000])
async def test_what_a_block_did_is_fetched_in_parts(value_size: int) -> None:
    receipts = [b"receipt %d" % number for number in range(50)]
    writes = [(b"key %04d" % number, bytes(value_size) if number % 7 else None) for number in range(300)]
    peer = Answering(Executing({3: (receipts, writes), 2: (receipts, None)}))
    net = Net()
    net.peers["m1"] = peer
    assert await fetch_execution(net, "m1", 3) == (tuple(receipts), dict(writes))
    assert len(net.asked) == (1 if value_size == 10 else 4)
    assert await fetch_execution(net, "m1", 2) == (tuple(receipts), None)
    with pytest.raises(NotFound):
        await fetch_execution(net, "m1", 4)
    await peer.server.close()


@pytest.mark.parametrize(
    "reply",
    [
        Blocks(0, (), 1, 1),
        Execution(0, 1, 2, True, ()),
        Execution(0, 3, 2, True, ((b"", b"receipt"), (b"key", None))),
        Execution(0, 1, 1, True, ((b"", b"receipt"), (b"key", None))),
        Execution(0, 1, 2, True, ((b"key", b"receipt"), (b"key", None))),
        Execution(0, 0, 2, True, ((b"key", b"one"), (b"key", b"two"))),
        Execution(0, 0, 1, True, ((b"", b"no key"),)),
        Execution(0, 1, 1, True, ((b"", None),)),
    ],
)
async def test_an_account_of_a_block_that_is_none_is_refused(reply: object) -> None:
    async def answer(message: Question) -> object:
        return reply

    net = Net()
    net.peers["m1"] = answer
    with pytest.raises(InvalidFrame):
        await fetch_execution(net, "m1", 3)


async def test_rows_without_end_are_refused() -> None:
    asked = 0

    async def endless(message: Question) -> object:
        nonlocal asked
        asked += 1
        return Execution(0, 1, ROWS_TOTAL_MAX, True, ((b"", b""),) * ROWS_MAX)

    net = Net()
    net.peers["m1"] = endless
    with pytest.raises(InvalidFrame):
        await fetch_execution(net, "m1", 3)
    assert asked * ROWS_MAX * executions.ROW_BYTES <= executions.BYTES_MAX + ROWS_MAX * executions.ROW_BYTES


async def test_a_peer_that_sends_a_row_at_a_time_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "WHOLE_TIMEOUT_S", 0.1)

    async def slow(message: Question) -> object:
        await asyncio.sleep(0.02)
        return Execution(0, 1, ROWS_TOTAL_MAX, True, ((b"", b"receipt"),))

    net = Net()
    net.peers["m1"] = slow
    with pytest.raises(Unavailable, match="peer_timeout"):
        await fetch_execution(net, "m1", 3)


async def test_a_broken_disk_ends_the_node() -> None:
    async with running() as node:

        async def broken(take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
            raise OSError("disk")

        node.chain.replay = broken  # type: ignore[method-assign]
        node.net.peers["m1"] = serving(CHAIN)
        node.sync.catch_up(80, ["m1"])
        await until(lambda: len(node.failures) == 1)
        assert not node.sync.progress().running


async def test_close_lets_the_block_in_hand_be_applied_and_leaves_no_task() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        node.chain.gate.clear()
        node.sync.catch_up(80, ["m1"])
        await until(lambda: node.chain.at_gate and len(node.net.asked) == 2)
        closing = asyncio.ensure_future(node.sync.close())
        await asyncio.sleep(0)
        node.chain.gate.set()
        await closing
        assert node.chain.head.height == 1
        node.sync.catch_up(80, ["m1"])
        assert not node.sync.progress().running


async def test_without_peers_it_waits_for_one() -> None:
    async with running() as node:
        node.sync.catch_up(80, [])
        await asyncio.sleep(0)
        assert node.sync.progress().running
        node.net.peers["m1"] = serving(CHAIN)
        await until(lambda: node.chain.head.height == 80)


# --- serving -------------------------------------------------------------------------------------------------


async def test_server_bounds_bytes_and_requests_and_always_serves_one_block() -> None:
    chain = OwnChain(make_chain(6, size=900_000))
    peer = Answering(chain)
    for first in (1, 3, 5):
        peer.server.on_fetch_blocks("asker", FetchBlocks(first, first, first + 999))
    peer.server.on_fetch_blocks("other", FetchBlocks(9, 7, 7))
    replies = [await peer.answers.get() for _ in range(3)]
    assert [(reply.request, len(reply.blocks), reply.head) for reply in replies if isinstance(reply, Blocks)] == [
        (1, 2, 6),
        (3, 2, 6),
        (9, 0, 6),
    ], "the third request of one asker was dropped, the other asker was answered"
    assert peer.server.blocks_served == 4
    await peer.server.close()
    peer.server.on_fetch_blocks("asker", FetchBlocks(1, 1, 1))
    assert peer.answers.empty()


async def test_server_serves_a_block_larger_than_its_reply_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REPLY_SIZE_BYTES", 100)
    peer = Answering(OwnChain(CHAIN))
    reply = await peer(FetchBlocks(1, 5, 8))
    assert reply == Blocks(1, (encode(CHAIN[4]),), 80, 1)


async def test_server_serves_a_payload_at_hand_and_says_when_it_has_none() -> None:
    peer = Answering(OwnChain(CHAIN))
    header = CHAIN[4].body.header
    peer.server.on_fetch_payload("asker", FetchPayload(1, 5, header.digest))
    peer.server.on_fetch_payload("asker", FetchPayload(2, 6, header.digest))
    assert await peer.answers.get() == PayloadReply(1, encode(Proposal(header, (), ())))
    assert await peer.answers.get() == PayloadReply(2, None)


async def test_server_keeps_nobody_from_a_payload_with_an_old_execution() -> None:
    chain, reading = OwnChain(), threading.Event()

    def slow(height: int) -> Any:
        assert reading.wait(5.0)

    chain.execution = slow  # type: ignore[method-assign]
    peer = Answering(chain)
    peer.server.on_fetch_execution("liar", FetchExecution(1, 1, 0))
    peer.server.on_fetch_execution("liar", FetchExecution(2, 1, 0))
    peer.server.on_fetch_execution("liar", FetchExecution(3, 1, 0))
    peer.server.on_fetch_payload("asker", FetchPayload(4, 1, GENESIS))
    assert isinstance(await peer.answers.get(), PayloadReply)
    assert peer.answers.empty()
    reading.set()
    replies = [await peer.answers.get() for _ in range(2)]
    assert [reply.request for reply in replies if isinstance(reply, Execution)] == [1, 2], "the third was too many"
    await peer.server.close()


async def test_server_reports_a_broken_archive() -> None:
    chain = OwnChain(CHAIN)

    def broken(height: int) -> bytes | None:
        raise OSError("disk")

    chain.certified_block = broken  # type: ignore[method-assign]
    peer = Answering(chain)
    peer.server.on_fetch_blocks("asker", FetchBlocks(1, 1, 1))
    await until(lambda: len(peer.failures) == 1)


# --- payloads ------------------------------------------------------------------------------------------------


def offering(payload: bytes | None) -> Serve:
    async def answer(message: Question) -> object:
        assert isinstance(message, FetchPayload)
        return PayloadReply(0, payload)

    return answer


async def test_payload_comes_from_the_first_holder_that_tells_the_truth() -> None:
    header = CHAIN[4].body.header
    payload = encode(Proposal(header, (GENESIS,), ()))
    other = encode(Proposal(header, (), ()))
    reports: list[str] = []

    def report(peer: str, error: HansaError) -> None:
        reports.append(peer)

    net = Net()
    net.peers = {
        "m0": offering(None),
        "m1": offering(b"\xc1"),
        "m2": offering(encode(Proposal(CHAIN[5].body.header, (), ()))),
        "m3": silent,
        "m4": offering(other),
        "m5": offering(payload),
    }
    holders = ["gone", *sorted(net.peers)]
    assert await fetch_payload(net, 5, header.digest, holders, 0.7, report) == other
    assert reports == ["m1", "m2"]
    assert await fetch_payload(net, 5, header.digest, holders, 0.7, report, [other]) == payload
    assert await fetch_payload(net, 5, header.digest, ["m0", "gone"], 0.1, report) is None
