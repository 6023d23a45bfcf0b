"""Gossip over in-memory links: real transactions, real signatures, hostile peers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from consensus.codec import encode
from node.errors import HansaError, RejectedTransaction, Unavailable
from node.gossip import Gossip, Verdict, wire_id_of
from node.gossip.bodies import IDS_MAX, REPLY_SIZE_BYTES_MAX
from node.gossip.intake_queue import QUEUE_SIZE_BYTES_MAX
from node.gossip.spread import BATCH_SIZE_BYTES_MAX, BATCH_TRANSACTIONS_MAX, FAULTS_MAX, REPAIR_IDS_MAX
from node.ledger import (
    TRANSACTION_SIZE_MAX,
    Body,
    Call,
    KeySignature,
    SignedBody,
    Transaction,
    transaction_signing_bytes,
)
from node.wire import FetchTransactions, TransactionBatch, TransactionIds, Transactions, WireMessage
from tests.node.idle_clock import idle_clock

__all__ = ["idle_clock"]

pytestmark = pytest.mark.usefixtures("idle_clock")

KEY = SigningKey(bytes(32))
Answer = Callable[[str, FetchTransactions], Transactions | None]


def transaction(number: int, *, valid: bool = True, padding: int = 0) -> Transaction:
    body = Body("net-1", "bank-a", f"r-{number}", 1, "atomic", (Call("settlement", "pay", {"p": "x" * padding}),))
    signed = transaction_signing_bytes(encode(body)) if valid else b"something else"
    signature = KeySignature(bytes(KEY.verify_key), KEY.sign(signed).signature)
    return Transaction.assemble(body, [signature])


def judge(data: bytes) -> Verdict:
    try:
        decoded = Transaction.decode(data)
        for item in decoded.signatures:
            VerifyKey(item.key).verify(transaction_signing_bytes(decoded.body_bytes), item.signature)
    except (RejectedTransaction, BadSignatureError):
        return Verdict.INVALID
    return Verdict.ACCEPTED


class Site:
    """One node's pool, intake and gossip in a net of in-memory links."""

    def __init__(self, name: str, net: "Net") -> None:
        self.name = name
        self.bodies: dict[bytes, bytes] = {}
        self.since: dict[bytes, float] = {}
        self.judged: list[tuple[str, bytes]] = []
        self.bodies_heard: Counter[bytes] = Counter()
        self.reports: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.verdict: Callable[[bytes], Verdict] = judge
        self.gate = asyncio.Event()
        self.gate.set()
        self.link = Link(self, net)
        self.gossip = Gossip(
            self.link,
            self,
            self.intake,
            lambda peer, error: self.reports.append((peer, error.code)),
            self.failures.append,
        )

    async def intake(self, peer: str, chunk: Sequence[bytes]) -> Sequence[Verdict]:
        self.judged += [(peer, wire_id_of(data)) for data in chunk]
        await self.gate.wait()
        verdicts = [self.verdict(data) for data in chunk]
        for data, verdict in zip(chunk, verdicts, strict=True):
            if verdict is Verdict.ACCEPTED:
                self.admit(data)
        return verdicts

    def admit(self, data: bytes) -> None:
        self.bodies[wire_id_of(data)] = data
        self.since.setdefault(wire_id_of(data), asyncio.get_running_loop().time())

    def submit(self, transactions: Sequence[Transaction]) -> None:
        for item in transactions:
            self.admit(item.data)
        self.gossip.publish(transactions)

    def body(self, wire_id: bytes) -> bytes | None:
        return self.bodies.get(wire_id)

    def missing(self, wire_ids: Sequence[bytes]) -> list[bytes]:
        return [wire_id for wire_id in wire_ids if wire_id not in self.since]

    def waiting(self, age_ms_min: int, first: int, limit: int) -> Sequence[bytes]:
        before = asyncio.get_running_loop().time() - age_ms_min / 1000
        return [wire_id for wire_id, since in self.since.items() if since <= before][first : first + limit]


class Link:
    """A site's transport: what it sends arrives at the next turn of the loop, unless the link is cut or lossy."""

    def __init__(self, site: Site, net: "Net") -> None:
        self.site = site
        self.net = net

    @property
    def connected(self) -> Iterable[str]:
        return sorted(peer for peer in self.net.sites if (self.site.name, peer) in self.net.links)

    def send(self, peer: str, message: WireMessage) -> bool:
        if (self.site.name, peer) not in self.net.links:
            return False
        self.net.sent.append((self.site.name, peer, message))
        if (self.site.name, peer) not in self.net.lossy:
            asyncio.get_running_loop().call_soon(self.net.deliver, self.site.name, peer, message)
        return True

    def broadcast(self, message: WireMessage) -> None:
        for peer in self.connected:
            self.send(peer, message)

    async def request(self, peer: str, message: FetchTransactions, timeout_s: float) -> object:
        if (self.site.name, peer) not in self.net.links:
            raise Unavailable("peer_gone", peer)
        if peer in self.net.answers:
            reply = self.net.answers[peer](self.site.name, message)
            if reply is None:
                await asyncio.sleep(timeout_s)
                raise Unavailable("peer_timeout", peer)
            return reply
        number = next(self.net.numbers)
        self.net.replies[number] = asyncio.get_running_loop().create_future()
        self.send(peer, FetchTransactions(number, message.wire_ids))
        try:
            async with asyncio.timeout(timeout_s):
                return await self.net.replies[number]
        except TimeoutError as error:
            raise Unavailable("peer_timeout", peer) from error


class Net:
    def __init__(self, names: str, links: Iterable[str]) -> None:
        self.numbers = iter(range(1, 1_000_000))
        self.replies: dict[int, asyncio.Future[Transactions]] = {}
        self.answers: dict[str, Answer] = {}
        self.sent: list[tuple[str, str, WireMessage]] = []
        self.links: set[tuple[str, str]] = set()
        self.lossy: set[tuple[str, str]] = set()
        for pair in links:
            self.links |= {(pair[0], pair[1]), (pair[1], pair[0])}
        self.sites = {name: Site(name, self) for name in names}

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def deliver(self, sender: str, receiver: str, message: WireMessage) -> None:
        site = self.sites[receiver]
        if isinstance(message, TransactionBatch):
            site.bodies_heard.update(wire_id_of(data) for data in message.transactions)
            site.gossip.on_batch(sender, message)
        elif isinstance(message, TransactionIds):
            site.gossip.on_ids(sender, message)
        elif isinstance(message, FetchTransactions):
            site.gossip.on_fetch(sender, message)
        elif isinstance(message, Transactions):
            site.bodies_heard.update(wire_id_of(data) for data in message.transactions)
            self.replies.pop(message.request).set_result(message)

    def count(self, kind: type[WireMessage]) -> int:
        return sum(1 for _, _, message in self.sent if isinstance(message, kind))


FULL_MESH = ("ab", "ac", "ad", "bc", "bd", "cd")


@asynccontextmanager
async def running(names: str, links: Iterable[str]) -> AsyncIterator[Net]:
    before = asyncio.all_tasks()
    net = Net(names, links)
    for site in net.sites.values():
        site.gossip.start()
    try:
        yield net
    finally:
        for site in net.sites.values():
            await site.gossip.close()
        assert asyncio.all_tasks() == before, "close leaves no task behind"


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the condition spans several nodes)
            await asyncio.sleep(0.002)


async def test_full_mesh_carries_each_body_to_each_peer_once() -> None:
    async with running("abcd", FULL_MESH) as net:
        sent = [transaction(number) for number in range(300)]
        net["a"].submit(sent)
        await until(lambda: all(len(site.bodies) == 300 for site in net.sites.values()))
        named: Callable[[], int] = lambda: sum(site.gossip.status().relayed for site in net.sites.values())  # noqa: E731
        await until(lambda: named() >= 300 * 3)  # each pair of receivers speaks of each at least once
        await until(lambda: not any(site.gossip.status().queued for site in net.sites.values()))
        for name in "bcd":
            assert all(net[name].bodies_heard[item.wire_id] == 1 for item in sent)
        assert net.count(FetchTransactions) == 0
        assert named() <= 300 * 6
        assert not net["a"].bodies_heard


async def test_relay_says_nothing_of_what_became_final() -> None:
    async with running("abc", ("ab", "ac", "bc")) as net:
        net["a"].submit([transaction(1)])
        await until(lambda: all(site.bodies for site in net.sites.values()))
        for site in net.sites.values():
            site.since.clear()
        net["a"].submit([transaction(2)])
        await until(lambda: net.count(TransactionIds) > 0)
        named = {
            wire_id for _, _, item in net.sent if isinstance(item, TransactionIds) for wire_id in item.wire_ids
        }
        assert named == {transaction(2).wire_id}


async def test_relay_names_nothing_to_those_who_named_it() -> None:
    async with running("abc", ("ac", "bc")) as net:
        named, other = transaction(1), transaction(2)
        net["c"].gossip.on_batch("a", TransactionBatch((named.data, other.data)))
        net["c"].gossip.on_ids("b", TransactionIds((named.wire_id,)))
        await until(lambda: net["c"].gossip.status().relayed > 0)
        told = [message for sender, _, message in net.sent if sender == "c" and isinstance(message, TransactionIds)]
        assert told == [TransactionIds((other.wire_id,))]


async def test_relay_crosses_a_line_of_nodes() -> None:
    async with running("abcd", ("ab", "bc", "cd")) as net:
        sent = [transaction(number) for number in range(50)]
        net["a"].submit(sent)
        await until(lambda: len(net["d"].bodies) == 50)
        for name in "bcd":
            assert all(net[name].bodies_heard[item.wire_id] == 1 for item in sent)


async def test_hundred_duplicates_reach_the_intake_once() -> None:
    async with running("abc", ("ab", "ac", "bc")) as net:
        item = transaction(1)
        net["a"].gate.clear()
        for _ in range(50):
            net["a"].gossip.on_batch("b", TransactionBatch((item.data,) * 2))
            net["a"].gossip.on_batch("c", TransactionBatch((item.data,)))
        await until(lambda: len(net["a"].judged) == 1)
        net["a"].gossip.on_batch("c", TransactionBatch((item.data,)))
        net["a"].gate.set()
        await until(lambda: item.wire_id in net["a"].bodies)
        net["a"].gossip.on_batch("b", TransactionBatch((item.data,)))
        await until(lambda: net["a"].gossip.status().duplicates == 151)
        assert net["a"].judged == [("b", item.wire_id)]


async def test_invalid_signatures_mute_the_peer_and_nobody_else() -> None:
    async with running("abc", ("ab", "ac", "bc")) as net:
        site = net["a"]
        bad = [transaction(number, valid=False) for number in range(FAULTS_MAX + 20)]
        site.gossip.on_batch("b", TransactionBatch(tuple(item.data for item in bad[: FAULTS_MAX - 1])))
        await until(lambda: site.gossip.status().invalid == FAULTS_MAX - 1)
        assert site.reports == []
        site.gossip.on_batch("b", TransactionBatch((bad[FAULTS_MAX].data,)))
        await until(lambda: site.reports == [("b", "bad_gossip")])
        assert site.gossip.status().muted == ("b",)
        judged = len(site.judged)
        site.gossip.on_batch("b", TransactionBatch((transaction(1).data, bad[-1].data)))
        site.gossip.on_ids("b", TransactionIds((transaction(2).wire_id,)))
        site.gossip.on_batch("c", TransactionBatch((transaction(3).data,)))
        await until(lambda: transaction(3).wire_id in site.bodies)
        assert site.judged[judged:] == [("c", transaction(3).wire_id)]
        assert net.count(TransactionBatch) == 0, "nothing invalid is told to others"


async def test_garbage_counts_as_invalid_and_a_monster_mutes_at_once() -> None:
    async with running("abc", ("ab", "ac", "bc")) as net:
        site = net["a"]
        site.gossip.on_batch("b", TransactionBatch((b"", b"\xc1", encode(SignedBody(b"x", ())))))
        await until(lambda: site.gossip.status().invalid == 3)
        site.gossip.on_batch("c", TransactionBatch((bytes(TRANSACTION_SIZE_MAX + 1), transaction(1).data)))
        assert site.gossip.status().muted == ("c",)
        assert not site.bodies


async def test_refused_is_nobodys_fault_and_may_be_published_later() -> None:
    async with running("ab", ("ab",)) as net:
        site = net["a"]
        site.verdict = lambda data: Verdict.REFUSED
        items = [transaction(number) for number in range(2 * FAULTS_MAX)]
        site.gossip.on_batch("b", TransactionBatch(tuple(item.data for item in items)))
        await until(lambda: site.gossip.status().refused == len(items))
        assert site.reports == []
        site.submit(items[:1])
        await until(lambda: items[0].wire_id in net["b"].bodies)


async def test_no_room_later_is_tried_again() -> None:
    async with running("ab", ("ab",)) as net:
        site = net["a"]
        site.verdict = lambda data: Verdict.LATER
        site.gossip.on_batch("b", TransactionBatch((transaction(1).data,)))
        await until(lambda: site.gossip.status().dropped == 1)
        site.verdict = judge
        site.gossip.on_batch("b", TransactionBatch((transaction(1).data,)))
        await until(lambda: len(site.bodies) == 1)


async def test_flooding_peer_is_bounded_and_does_not_delay_another() -> None:
    async with running("abc", ("ab", "ac", "bc")) as net:
        site = net["a"]
        site.gate.clear()
        large = tuple(bytes([number]) + bytes(1024 * 1024) for number in range(12))
        site.gossip.on_batch("b", TransactionBatch(large))
        site.gossip.on_batch("c", TransactionBatch((transaction(1).data,)))
        status = site.gossip.status()
        assert status.queued_bytes <= QUEUE_SIZE_BYTES_MAX + 1024
        assert status.dropped == 12 - status.queued + 1 > 0
        await until(lambda: len(site.judged) == 2)
        assert site.judged[1] == ("c", transaction(1).wire_id)
        site.gate.set()


async def test_publish_travels_in_bounded_batches() -> None:
    async with running("ab", ("ab",)) as net:
        many = [transaction(number) for number in range(BATCH_TRANSACTIONS_MAX + 1)]
        large = [transaction(-1 - number, padding=100_000) for number in range(4)]
        net["a"].submit(many)
        net["a"].submit(large)
        net["a"].submit(many[:3])
        await until(lambda: len(net["b"].bodies) == len(many) + len(large))
        for _, _, message in net.sent:
            if isinstance(message, TransactionBatch):
                assert len(message.transactions) <= BATCH_TRANSACTIONS_MAX
                assert sum(map(len, message.transactions)) <= BATCH_SIZE_BYTES_MAX
        assert max(net["b"].bodies_heard.values()) == 1


async def test_idle_publish_is_sent_in_the_same_turn_and_load_is_batched() -> None:
    async with running("ab", ("ab",)) as net:
        net["a"].submit([transaction(1)])
        net["a"].submit([transaction(2)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert net.count(TransactionBatch) == 1
        for number in range(3, 40):
            net["a"].submit([transaction(number)])
        await until(lambda: len(net["b"].bodies) == 39)
        assert net.count(TransactionBatch) == 2


async def test_partition_is_healed_by_repair() -> None:
    async with running("abcd", FULL_MESH) as net:
        cut = {(left, right) for left, right in net.links if (left in "ab") != (right in "ab")}
        net.lossy |= cut
        net["a"].submit([transaction(number) for number in range(20)])
        net["c"].submit([transaction(number) for number in range(20, 40)])
        for name in "bd":
            # What is relayed now is lost too: only the repair is left.
            await until(lambda name=name: net[name].gossip.status().relayed == 2 * 20)  # type: ignore[misc]
        net.lossy.clear()
        await until(lambda: all(len(site.bodies) == 40 for site in net.sites.values()))
        assert all(count == 1 for site in net.sites.values() for count in Counter(site.judged).values())


async def test_repair_names_a_slice_a_round_and_comes_round_again() -> None:
    async with running("ab", ("ab",)) as net:
        net.lossy |= net.links
        items = [transaction(number) for number in range(REPAIR_IDS_MAX + 5)]
        net["a"].submit(items)
        lost = net.count(TransactionIds)
        await until(lambda: net.count(TransactionIds) == lost + 2)
        net.lossy.clear()
        await until(lambda: len(net["b"].bodies) == len(items))


async def test_connecting_brings_what_waits() -> None:
    async with running("ab", ()) as net:
        net["a"].submit([transaction(number) for number in range(IDS_MAX + 5)])
        net.links |= {("a", "b"), ("b", "a")}
        net["a"].gossip.on_connected("b")
        await until(lambda: len(net["b"].bodies) == IDS_MAX + 5)


async def test_peer_that_names_and_withholds_delays_only_once() -> None:
    async with running("abc", ("ab", "ac")) as net:
        item = transaction(1)
        net.answers["b"] = lambda asker, message: None
        net["c"].admit(item.data)
        net["a"].gossip.on_ids("b", TransactionIds((item.wire_id,)))
        net["a"].gossip.on_ids("c", TransactionIds((item.wire_id,)))
        await until(lambda: item.wire_id in net["a"].bodies)
        other = transaction(2)
        net["a"].gossip.on_ids("b", TransactionIds((other.wire_id,)))
        net["c"].admit(other.data)
        net["a"].gossip.on_ids("c", TransactionIds((other.wire_id,)))
        await until(lambda: other.wire_id in net["a"].bodies, 0.5)


async def test_fetch_asks_the_proposer_first_and_then_the_others() -> None:
    async with running("abc", ("ab", "ac")) as net:
        items = [transaction(number) for number in range(IDS_MAX + 10)]
        asked: list[str] = []

        def answer(name: str, having: Sequence[Transaction]) -> Answer:
            known = {item.wire_id: item.data for item in having}

            def reply(asker: str, message: FetchTransactions) -> Transactions:
                asked.append(name)
                return Transactions(0, tuple(known[wid] for wid in message.wire_ids if wid in known))

            return reply

        net.answers = {"b": answer("b", items[5:]), "c": answer("c", items)}
        found = await net["a"].gossip.fetch([item.wire_id for item in items], ["b", "stranger", "c", "b"], 2.0)
        assert found == {item.wire_id: item.data for item in items}
        assert asked[0] == "b"
        assert asked[-1] == "c"


async def test_fetch_survives_liars_and_the_silent() -> None:
    async with running("abcd", FULL_MESH) as net:
        item, stranger = transaction(1), transaction(2)
        net.answers["b"] = lambda asker, message: Transactions(0, (stranger.data,))
        net.answers["c"] = lambda asker, message: None
        net["d"].admit(item.data)
        found = await net["a"].gossip.fetch([item.wire_id], ["b", "c", "d"], 1.0)
        assert found == {item.wire_id: item.data}
        del net["d"].bodies[item.wire_id]
        assert await net["a"].gossip.fetch([item.wire_id], ["b", "c", "d"], 0.2) == {}
        assert await net["a"].gossip.fetch([item.wire_id], [], 0.05) == {}


async def test_fetch_takes_what_already_came() -> None:
    async with running("ab", ("ab",)) as net:
        site = net["a"]
        site.gate.clear()
        first, second, third = (transaction(number) for number in range(3))
        site.gossip.on_batch("b", TransactionBatch((first.data,)))
        await until(lambda: len(site.judged) == 1)
        site.gossip.on_batch("b", TransactionBatch((b"occupies the second worker",)))
        await until(lambda: len(site.judged) == 2)
        site.gossip.on_batch("b", TransactionBatch((second.data, third.data)))
        assert await site.gossip.fetch([second.wire_id], ["b"], 1.0) == {second.wire_id: second.data}
        fetching = asyncio.ensure_future(site.gossip.fetch([first.wire_id], ["b"], 1.0))
        site.gate.set()
        assert await fetching == {first.wire_id: first.data}
        assert first.wire_id in site.bodies, "it waits for the verdict, which spares the caller the signatures"
        await until(lambda: third.wire_id in site.bodies)
        assert ("b", second.wire_id) not in site.judged
        assert net.count(FetchTransactions) == 0


async def test_serving_is_bounded_in_bytes_and_serves_one_of_any_size() -> None:
    async with running("ab", ("ab",)) as net:
        items = [transaction(number, padding=400_000) for number in range(4)]
        items.append(transaction(9, padding=1_500_000))
        for item in items:
            net["b"].admit(item.data)
        found = await net["a"].gossip.fetch([item.wire_id for item in items], ["b"], 2.0)
        assert len(found) == 5
        sizes = [
            [len(data) for data in message.transactions]
            for _, _, message in net.sent
            if isinstance(message, Transactions)
        ]
        assert all(len(reply) == 1 or sum(reply) <= REPLY_SIZE_BYTES_MAX for reply in sizes)
        assert len(sizes) == 3


@pytest.mark.parametrize("short", [True, False])
async def test_a_failing_intake_is_reported_as_failure(short: bool) -> None:
    async with running("ab", ("ab",)) as net:

        async def broken(peer: str, chunk: Sequence[bytes]) -> Sequence[Verdict]:
            if short:
                return []
            raise HansaError("internal_error", "disk")

        failures: list[BaseException] = []
        gossip = Gossip(net["a"].link, net["a"], broken, lambda peer, error: None, failures.append)
        gossip.start()
        gossip.on_batch("b", TransactionBatch((transaction(1).data,)))
        await until(lambda: len(failures) == 1)
        await gossip.close()
