"""Catch-up from several peers at once: who is asked for what, who is overtaken, and how much is held in memory."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from consensus.codec import encode
from consensus.members import Members, Validator
from consensus.messages import Certificate, VoteKind
from node.errors import Unavailable
from node.ledger import CertifiedBlock, Transaction
from node.sync import PeerAtWork, fetching, preparing, sources
from node.sync.progress import Pace
from node.sync.proof import Candidate
from node.sync.ranges import Range, Ranges
from node.wire import Blocks, FetchBlocks
from tests.node.idle_clock import idle_clock
from tests.node.test_sync import CHAIN, FORGERIES, OwnChain, Question, Serve, make_chain, running, serving, until

__all__ = ["idle_clock"]

LONG = make_chain(200)


class Held:
    """A peer whose answers wait until they are let go."""

    def __init__(self, answer: Serve) -> None:
        self.answer = answer
        self.gate = asyncio.Event()
        self.asked: list[tuple[int, int]] = []

    async def __call__(self, message: Question) -> object:
        assert isinstance(message, FetchBlocks)
        self.asked.append((message.first, message.last))
        await self.gate.wait()
        return await self.answer(message)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is overtaken because this machine is busy."""
    monkeypatch.setattr(sources, "OVERDUE_S_FIRST", 60.0)
    monkeypatch.setattr(sources, "OVERDUE_S_MIN", 60.0)
    monkeypatch.setattr(fetching, "ANSWER_TIMEOUT_S", 60.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is overtaken soon, long before its time is up."""
    monkeypatch.setattr(sources, "OVERDUE_S_FIRST", 0.03)
    monkeypatch.setattr(sources, "OVERDUE_S_MIN", 0.03)
    monkeypatch.setattr(sources, "ASIDE_S", 30.0)


async def test_ranges_come_from_all_peers_at_once_and_are_applied_in_order() -> None:
    async with running() as node:
        peers = {name: Held(serving(CHAIN)) for name in ("m1", "m2", "m3")}
        node.net.peers.update(peers)
        node.sync.catch_up(80, [])
        await until(lambda: all(peer.asked for peer in peers.values()))
        assert [peer.asked for peer in peers.values()] == [[(1, 32)], [(33, 64)], [(65, 96)]]
        assert [(ask.peer, ask.first) for ask in node.sync.progress().asks] == [("m1", 1), ("m2", 33), ("m3", 65)]
        peers["m3"].gate.set()
        peers["m2"].gate.set()
        await until(lambda: node.sync.progress().held_bytes >= sum(len(encode(block)) for block in CHAIN[32:]))
        assert node.chain.head.height == 0, "what came first waits for what is due first"
        peers["m1"].gate.set()
        await until(lambda: node.chain.head.height == 80)
        assert node.chain.blocks == CHAIN
        assert [len(peer.asked) for peer in peers.values()] == [1, 1, 1], "nothing was asked for twice"
        # A block is let go of right after the head has moved onto it.
        await until(lambda: node.sync.progress().held_bytes == 0)


@pytest.mark.usefixtures("impatient")
async def test_a_slow_peer_that_holds_up_the_head_is_overtaken_long_before_its_time_is_up() -> None:
    async with running() as node:
        slow = Held(serving(CHAIN))
        node.net.peers.update(m1=slow, m2=serving(CHAIN))
        await node.reach(80, ["m1"])
        assert slow.asked == [(1, 32)]
        assert (1, 32) in node.net.asked_of("m2")
        [aside] = node.sync.progress().aside
        assert (aside.peer, aside.reason) == ("m1", "slow: overtaken by m2")
        assert node.reports == {}, "slowness is no lie"


async def test_what_holds_up_the_head_comes_before_what_is_still_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "OVERDUE_S_FIRST", 0.0)
    monkeypatch.setattr(sources, "OVERDUE_S_MIN", 0.0)
    monkeypatch.setattr(sources, "OVERDUE_FACTOR", 0.0)
    async with running() as node:
        node.net.peers.update(m1=Held(serving(LONG)), m2=serving(LONG))
        await node.reach(200, ["m1"])
        assert node.net.asked_of("m2")[:2] == [(33, 64), (1, 32)]


@pytest.mark.usefixtures("impatient")
async def test_a_slow_peer_is_asked_again_when_there_is_nobody_else() -> None:
    async with running() as node:
        slow = Held(serving(CHAIN))
        node.net.peers.update(m1=slow, m2=serving(CHAIN[:40]))
        node.sync.catch_up(80, ["m1"])
        await until(lambda: node.chain.head.height == 40)
        slow.gate.set()
        del node.net.peers["m2"]
        await until(lambda: node.chain.head.height == 80)


@pytest.mark.usefixtures("impatient")
async def test_with_a_liar_a_slow_peer_and_one_that_vanishes_the_blocks_still_come() -> None:
    served = 0

    async def vanishing(message: Question) -> object:
        nonlocal served
        served += 1
        if served > 1:
            node.net.peers.pop("m3", None)
            raise Unavailable("peer_gone", "m3 went away")
        return await serving(LONG)(message)

    async def slow(message: Question) -> object:
        await asyncio.sleep(0.02)
        return await serving(LONG)(message)

    forged: list[CertifiedBlock | bytes] = [*LONG[:9], FORGERIES["certified by strangers"], *LONG[10:]]
    async with running() as node:
        node.net.peers.update(m1=serving(forged), m2=slow, m3=vanishing)
        await node.reach(200, ["m1"])
        assert node.chain.blocks == LONG
        assert node.reports.keys() == {"m1"}
        assert node.failures == []
        assert node.sync.progress().faults_total == 1


async def test_what_cannot_be_judged_yet_keeps_its_sender_from_being_asked_for_more_ahead() -> None:
    """A quick liar must not fill everything ahead of the head with what will be thrown away."""
    forged: list[CertifiedBlock | bytes] = list(LONG)
    for place in range(32, 200):
        block = LONG[place]
        header = block.body.header
        unsigned = Certificate(VoteKind.COMMIT, 0, header.height, header.digest, ())
        forged[place] = CertifiedBlock(block.body, unsigned)
    async with running() as node:
        honest = Held(serving(LONG))
        node.net.peers.update(m1=honest, m2=serving(forged))
        node.sync.catch_up(200, ["m1"])
        await until(lambda: node.sync.progress().held_bytes > 0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(node.net.asked_of("m2")) == 1
        honest.gate.set()
        await until(lambda: node.chain.head.height == 200)
        assert node.chain.blocks == LONG
        assert node.reports.keys() == {"m2"}


async def test_the_blocks_of_several_peers_beyond_a_change_of_members_are_judged_again_and_kept() -> None:
    chain = make_chain(96, change_at=20)
    async with running(OwnChain(change_at=20)) as node:
        node.net.peers.update(m1=serving(chain), m2=serving(chain), m3=serving(chain))
        await node.reach(96)
        assert node.chain.blocks == chain
        assert node.reports == {}
        fetched = sorted(item.first for _, item in node.net.asked if isinstance(item, FetchBlocks))
        assert fetched == [1, 33, 65], "nothing was fetched twice"


async def test_memory_is_bounded_by_what_is_held_and_what_may_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RANGE_MAX", 8)
    monkeypatch.setattr(sources, "RANGE_START", 8)
    block_bytes = max(len(encode(block)) for block in LONG)
    monkeypatch.setattr(fetching, "BLOCKS_BYTES_MAX", 8 * block_bytes)
    monkeypatch.setattr(fetching, "HELD_BYTES_MAX", 40 * block_bytes)
    worst = 0

    async def watched(message: Question) -> object:
        nonlocal worst
        progress = node.sync.progress()
        worst = max(worst, progress.held_bytes + len(progress.asks) * 8 * block_bytes)
        return await serving(LONG)(message)

    async with running() as node:
        node.net.peers.update({f"m{number}": watched for number in range(1, 6)})
        node.chain.gate.clear()
        node.sync.catch_up(200, [])
        await until(lambda: node.sync.progress().held_bytes > 24 * block_bytes and not node.sync.progress().asks)
        asked = len(node.net.asked)
        assert asked * 8 < 100, "far from everything is fetched while nothing can be applied"
        node.chain.gate.set()
        await until(lambda: node.chain.head.height == 200)
        assert worst <= 56 * block_bytes


async def test_a_peer_that_sends_one_block_at_a_time_does_not_make_the_others_answers_small() -> None:
    async def drip(message: Question) -> object:
        assert isinstance(message, FetchBlocks)
        return Blocks(0, (encode(LONG[message.first - 1]),), 200, 1)

    async with running() as node:
        node.net.peers.update(m1=drip, m2=serving(LONG))
        await node.reach(200)
        sizes = [last - first + 1 for first, last in node.net.asked_of("m2")]
        assert max(sizes) >= 64


async def test_a_peer_is_not_asked_for_what_it_has_pruned_and_helps_with_the_rest() -> None:
    async def pruned(message: Question) -> object:
        assert isinstance(message, FetchBlocks)
        blocks = tuple(encode(block) for block in LONG[message.first - 1 : message.last] if message.first >= 120)
        return Blocks(0, blocks, 200, 120)

    async with running() as node:
        node.net.peers.update(m1=pruned, m2=serving(LONG))
        await node.reach(200, ["m1"])
        first, *others = node.net.asked_of("m1")
        assert first[0] < 120
        assert others
        assert all(start >= 120 for start, _ in others)
        assert node.unservable == []


@pytest.mark.usefixtures("idle_clock")
async def test_when_nobody_serves_the_next_block_any_more_it_says_so_until_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def pruned(message: Question) -> object:
        return Blocks(0, (), 200, 120)

    async def older(message: Question) -> object:
        return Blocks(0, (), 200, 90)

    async with running(OwnChain(LONG[:10])) as node:
        node.net.peers.update(m1=pruned, m2=older)
        node.sync.catch_up(200, [])
        await until(lambda: bool(node.unservable))
        assert node.unservable == [(11, 90)]
        progress = node.sync.progress()
        assert progress.running
        assert progress.unservable == 90
        assert progress.problem is not None
        assert "no connected peer serves block 11" in progress.problem
        assert len(node.net.asked) == 2, "who lacks it is not asked again and again"
        node.net.peers["m3"] = serving(LONG)
        await until(lambda: node.chain.head.height == 200)
        assert node.sync.progress().unservable == 0
        assert node.unservable == [(11, 90)]


async def test_one_silent_peer_keeps_it_from_saying_that_nobody_serves_the_next_block() -> None:
    async def pruned(message: Question) -> object:
        return Blocks(0, (), 200, 120)

    async with running() as node:
        silent = Held(serving(LONG))
        node.net.peers.update(m1=pruned, m2=silent)
        node.sync.catch_up(200, [])
        await until(lambda: len(silent.asked) == 1 and len(node.net.asked_of("m1")) == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert node.unservable == []
        silent.gate.set()
        await until(lambda: node.chain.head.height == 200)


# --- preparing -----------------------------------------------------------------------------------------------


class Preparable(OwnChain):
    """A chain that notes which blocks' transactions were verified."""

    def __init__(self) -> None:
        super().__init__()
        self.verified_first: list[bytes] = []

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        self.verified_first.append(data[0])
        return []


async def test_the_transactions_of_the_next_blocks_are_verified_while_one_executes_and_each_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparing, "AHEAD_BLOCKS_MAX", 8)
    chain = Preparable()
    async with running(chain) as node:
        node.net.peers["m1"] = serving(CHAIN)
        chain.gate.clear()
        node.sync.catch_up(80, ["m1"])
        await until(lambda: len(chain.verified_first) >= 8)
        for _ in range(20):
            await asyncio.sleep(0)
        assert node.chain.head.height == 0
        assert len(chain.verified_first) == 8, "so many ahead, the one in hand among them, and no more"
        chain.gate.set()
        await until(lambda: node.chain.head.height == 80)
        assert chain.verified_first == [b"%d" % height for height in range(1, 81)]


async def test_what_is_prepared_and_what_is_in_hand_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    due = candidates(1, 30)
    size_bytes = sum(map(len, due[0].block.body.transactions))
    monkeypatch.setattr(preparing, "AHEAD_BYTES_MAX", 6 * size_bytes)
    begun: list[bytes] = []

    async def verified(data: Sequence[bytes]) -> list[Transaction]:
        begun.append(data[0])
        return []

    ahead = preparing.Preparing(verified)
    ahead.work_ahead(due)
    assert 5 * size_bytes < ahead.held_bytes <= 6 * size_bytes
    held = ahead.held_bytes
    await ahead.take(due[0])
    ahead.work_ahead(due)
    assert ahead.held_bytes == held, "what was taken counts until it was applied"
    assert not ahead.has_room(due[29])
    ahead.passed(2)
    assert ahead.held_bytes < held
    ahead.work_ahead(due[2:])
    assert held - size_bytes < ahead.held_bytes <= 6 * size_bytes
    ahead.give_up(due[2].digest)
    await ahead.take(due[2])
    await ahead.clear()
    assert ahead.held_bytes == 0
    big = candidates(12, 1)
    monkeypatch.setattr(preparing, "AHEAD_BYTES_MAX", 1)
    ahead.work_ahead(big)
    assert ahead.held_bytes > 1, "one block, whatever its size"
    assert not ahead.has_room(due[0])
    await ahead.clear()
    assert len(begun) == len(set(begun)) + 1, "only what was given up was verified again"


async def test_nothing_is_verified_that_no_quorum_signed() -> None:
    chain = Preparable()
    forged: list[CertifiedBlock | bytes] = [*CHAIN[:9], FORGERIES["too few signatures"]]
    async with running(chain) as node:
        node.net.peers["m1"] = serving(forged, head=80)
        node.sync.catch_up(80, ["m1"])
        await until(lambda: bool(node.reports["m1"]))
        assert chain.verified_first == [b"%d" % height for height in range(1, 10)]


# --- parts ---------------------------------------------------------------------------------------------------


def test_the_quicker_peer_is_preferred_untried_ones_are_tried_and_hints_decide_among_equals() -> None:
    known = sources.Sources(lambda: 1000.0)
    peers = ["m1", "m2", "m3"]
    assert known.choose(peers, 1) == "m1"
    known.hints = ("m3",)
    assert known.choose(peers, 1) == "m3"
    known.answered("m3", 0.5, 1, whole=False)
    known.answered("m1", 0.4, 32, whole=True)
    assert known.choose(peers, 1) == "m2"
    known.answered("m2", 0.4, 16, whole=True)
    assert known.choose(peers, 1) == "m1"
    assert known.choose(["m2", "m3"], 1) == "m2"
    assert [known.range_size(peer) for peer in peers] == [64, 64, 1]
    assert known.choose([], 1) is None


def test_rates_are_those_of_the_last_seconds_and_totals_go_on() -> None:
    pace = Pace()
    assert pace.rates(5.0) == (0.0, 0.0)
    pace.begin(100.0)
    for number in range(1, 401):
        pace.note(100.0 + number * 0.1, 3)
    blocks_per_s, transactions_per_s = pace.rates(140.0)
    assert blocks_per_s == pytest.approx(10.0, rel=0.05)
    assert transactions_per_s == pytest.approx(30.0, rel=0.05)
    pace.note(150.0, 3)
    assert pace.rates(150.0)[0] < 6.0, "a standstill shows"
    pace.begin(200.0)
    assert pace.rates(201.0) == (0.0, 0.0)
    assert (pace.blocks, pace.transactions) == (401, 1203)


def candidates(first: int, count: int) -> list[Candidate]:
    members = Members((Validator("m0", bytes(32)),))
    blocks = LONG[first - 1 : first - 1 + count]
    return [Candidate(block, block.body.header.digest, members) for block in blocks]


def spans(ranges: Ranges) -> list[tuple[int, int, bool]]:
    return [(item.first, item.last, bool(item.candidates)) for item in ranges]


def test_ranges_stay_without_gap_and_count_what_they_hold() -> None:
    ranges = Ranges()
    low, high = ranges.extend(0, 100, 10), ranges.extend(0, 100, 10)
    assert low is not None
    assert high is not None
    ranges.cut(low, 4)
    assert spans(ranges) == [(1, 4, False), (5, 10, False), (11, 20, False)]
    assert ranges.fill(high, "m1", candidates(11, 3), 30)
    assert spans(ranges) == [(1, 4, False), (5, 10, False), (11, 13, True), (14, 20, False)]
    assert not ranges.fill(high, "m2", candidates(11, 10), 100), "the quicker answer counts"
    assert ranges.fill(low, "m2", candidates(1, 10), 100), "it was cut since it was asked for"
    assert spans(ranges)[:2] == [(1, 4, True), (5, 10, False)]
    assert [item.height for item in low.candidates] == [1, 2, 3, 4]
    assert ranges.held_bytes == 130
    ranges.drop_through(7)
    assert spans(ranges) == [(8, 10, False), (11, 13, True), (14, 20, False)]
    assert ranges.held_bytes == 30
    assert not ranges.fill(low, "m3", candidates(1, 4), 40), "the head has passed it"
    ranges.discard(high)
    assert spans(ranges) == [(8, 10, False), (11, 13, False), (14, 20, False)]
    assert ranges.held_bytes == 0
    assert ranges.extend(7, 20, 10) is None
    ranges.clear()
    assert len(ranges) == 0


def test_only_what_is_not_proven_of_a_liar_is_thrown_away() -> None:
    ranges = Ranges()
    filled: list[Range] = []
    for first in (1, 11, 21):
        item = ranges.extend(0, 100, 10)
        assert item is not None
        found = candidates(first, 10)
        if first == 21:
            found[4] = msgspec.structs.replace(found[4], proven_by=None)
        assert ranges.fill(item, "m1" if first != 11 else "m2", found, 100)
        filled.append(item)
    ranges.discard_doubtful("m2")
    assert ranges.held_bytes == 300
    ranges.discard_doubtful("m1")
    assert [bool(item.candidates) for item in filled] == [True, True, False]
    assert ranges.held_bytes == 200


async def test_who_is_at_work_is_shown_with_its_part() -> None:
    async with running() as node:
        peer = Held(serving(CHAIN))
        node.net.peers["m1"] = peer
        node.sync.catch_up(80, [])
        await until(lambda: bool(peer.asked))
        [ask] = node.sync.progress().asks
        assert msgspec.structs.replace(ask, for_s=0.0) == PeerAtWork("m1", 1, 32, 0.0)
        assert node.sync.progress().eta_s is None
