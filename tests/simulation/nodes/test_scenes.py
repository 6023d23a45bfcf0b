"""What the runtime promises, one small scene each: whole nodes, small delays, and one thing that goes wrong."""

from collections.abc import Callable

import pytest

from consensus.codec import decode, encode
from consensus.effects import Connected, Effect, Input, VoteRecord
from consensus.messages import PrePrepare, Vote, VoteKind, vote_bytes
from consensus.replica import Replica
from node.client.answers import Submission
from node.gossip import Gossip
from node.ledger import HeadRecord, Transaction
from node.runtime.driver import Driver
from node.runtime.intake import Intake
from node.store.layout import META_NEVER_VOTED, META_VOTED, number
from node.wire import ConsensusMessage, WireMessage
from tests.simulation.nodes.disk import Contents
from tests.simulation.nodes.faults import Plan
from tests.simulation.nodes.founding import Shape, sign
from tests.simulation.nodes.host import Door, Host
from tests.simulation.nodes.rules import height_of, record_slot_of
from tests.simulation.nodes.transport import SimTransport
from tests.simulation.nodes.world import NodeWorld

BASE_MS = 2_000
SHAPE = Shape(
    n=4,
    base_timeout_ms=BASE_MS,
    timeout_cap_ms=8_000,
    status_interval_ms=500,
    rotation_heights=10_000,
    empty_block_interval_ms=3_000,
    drift_ms=300,
    block_transactions_max=8,
)


def scene(mempool_transactions_max: int = 1_000, shape: Shape = SHAPE, seed: int = 1) -> NodeWorld:
    """Four honest nodes on a quick network."""
    plan = Plan(shape, (500, 1_500), mempool_transactions_max, 1_000_000, 1_000_000, 1_000_000, ())
    return NodeWorld(seed, plan=lambda world: plan)


def serving(*hosts: Host) -> bool:
    """Whether all nodes serve clients and hear each other."""
    return all(
        host.door is not None
        and len(host.door.service.status().peers) == host.world.plan.shape.n - 1
        # Presence of each other's process: until then nobody may vote.
        and all(peer.connected for peer in host.door.service.status().peers)
        for host in hosts
    )


def everybody_votes(world: NodeWorld) -> Callable[[], bool]:
    """Whether all nodes serve and are ready."""
    return lambda: (
        serving(*world.hosts)
        and all(host.door is not None and host.door.service.status().ready for host in world.hosts)
    )


def final_at(*hosts: Host, transactions: list[Transaction]) -> Callable[[], bool]:
    """Whether all of the transactions are final at all of the nodes."""

    def holds() -> bool:
        return all(
            host.door is not None and host.door.service.fate(item.tx_id).status == "final"
            for host in hosts
            for item in transactions
        )

    return holds


def primary_of(world: NodeWorld) -> Host:
    """The primary of the height in work."""
    primary = world.primary_now()
    assert primary is not None
    return primary


def journal(contents: Contents) -> list[bytes]:
    """The ids of the journalled transactions."""
    return [key[1:] for key, _ in contents.scan(b"p", b"q")]


def watch_sent(world: NodeWorld) -> list[tuple[int, str, WireMessage]]:
    """(time in ms, member, message) of everything that is sent from now on."""
    seen: list[tuple[int, str, WireMessage]] = []
    before = world.network.on_sent

    def note(member: str, message: WireMessage) -> None:
        seen.append((world.timeline.now_us // 1000, member, message))
        before(member, message)

    world.network.on_sent = note
    return seen


# --- the start ---------------------------------------------------------------------------------------------------


def test_a_node_starts_with_its_journal_then_gossip_then_the_driver_then_links_then_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def watched(owner: type, name: str, label: str) -> None:
        real = getattr(owner, name)

        def call(self: object) -> object:
            order.append(label)
            return real(self)

        monkeypatch.setattr(owner, name, call)

    watched(Intake, "restore", "journal")
    watched(Intake, "readmit", "readmitted")
    watched(Gossip, "start", "gossip")
    watched(Driver, "start", "driver")
    watched(SimTransport, "start", "links")
    watched(Door, "start", "clients")
    world = scene()
    with world.staged() as until:
        until(lambda: world.hosts[0].door is not None, 1_000)
        host = world.hosts[0]
        host.crash()
        for other in world.hosts:
            other.crash()
        order.clear()
        host.start()
        until(lambda: host.door is not None, 1_000)
    assert order == ["journal", "readmitted", "gossip", "driver", "links", "clients"]


def test_a_full_or_conflicting_journal_keeps_no_node_from_starting_and_loses_no_fate() -> None:
    world = scene(mempool_transactions_max=40)
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        host = world.hosts[0]
        for other in world.hosts[1:]:
            other.crash(power=True)
        # Of each sender as much as its share of the pool allows, so that a smaller pool has no room for all.
        kept = [world.clients.good_payment(account) for account in ("A-0", "A-1", "A-2", "A-3") for _ in range(6)]
        answers = world.clients.submit_at(host, kept)
        until(lambda: len(answers) == len(kept), 2_000)
        assert all(isinstance(answer, Submission) for answer in answers)
        host.crash()
        # The other body of a request id, as a node that accepted it before it heard of the first would have it.
        twin = world.clients.good_payment("A-1", request_id=kept[6].body.request_id)
        host.disk.write([(b"p" + twin.tx_id, twin.data)])
        world.rules.require("the scene", len(journal(host.disk.contents)) == 25)
        host.mempool_transactions_max = 8
        host.start()
        until(lambda: host.door is not None, 2_000)
        assert host.door is not None
        assert 0 < host.door.service.status().pending_transactions <= 16
        for other in world.hosts[1:]:
            other.start()
        # What found no room at the start waits again as the pool empties: nothing that was promised is lost.
        others = [item for item in kept if item is not kept[6]]
        until(final_at(*world.hosts, transactions=others), 60_000)
        door = host.door

        def fates() -> list[str]:
            return sorted(door.service.fate(item.tx_id).status for item in (kept[6], twin))

        until(lambda: "pending" not in fates(), 10_000)
        assert fates() == ["dropped", "final"]
        assert journal(host.disk.contents) == []


def test_the_driver_gives_its_replica_nothing_before_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bool, Input]] = []
    started: set[int] = set()
    real_start, real_step = Replica.start, Replica.step

    def start(self: Replica) -> list[Effect]:
        started.add(id(self))
        return real_start(self)

    def step(self: Replica, input_: Input) -> list[Effect]:
        given.append((id(self) in started, input_))
        return real_step(self, input_)

    monkeypatch.setattr(Replica, "start", start)
    monkeypatch.setattr(Replica, "step", step)
    world = scene()
    with world.staged() as until:
        until(lambda: world.hosts[0].process is not None, 1_000)
        process = world.hosts[0].process
        assert process is not None
        assert process.node is not None
        # What comes before its records are with the replica is dropped: it would take its votes for another's.
        process.node._driver.give(Connected("bank-1"))
        assert given == []
        until(everybody_votes(world), 20_000)
    assert given
    assert all(after_start for after_start, _ in given)


# --- promises ----------------------------------------------------------------------------------------------------


def test_a_known_transaction_is_promised_only_once_it_is_journalled() -> None:
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        primary = primary_of(world)
        first, second = [host for host in world.hosts if host is not primary][:2]
        # Nothing is decided meanwhile: the transaction must be seen waiting.
        primary.crash(power=True)
        payment = world.clients.good_payment()
        world.clients.submit_at(first, [payment])
        until(lambda: second.door is not None and second.door.service.transaction(payment.tx_id) is not None, 1_000)
        assert journal(second.disk.contents) == []
        second.pace.disk = 50
        answers = world.clients.submit_at(second, [payment])
        until(lambda: bool(answers), 10_000)
        [answer] = answers
        assert isinstance(answer, Submission)
        assert answer.duplicate
        assert journal(second.disk.contents) == [payment.tx_id]


def test_what_was_promised_survives_a_power_cut_of_all() -> None:
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        primary = primary_of(world)
        host = next(host for host in world.hosts if host is not primary)
        for other in world.hosts:
            if other is not host:
                world.network.cut(host.id, other.id)
        payments = [world.clients.good_payment() for _ in range(3)]
        answers = world.clients.submit_at(host, payments)
        until(lambda: len(answers) == 3, 2_000)
        for other in world.hosts:
            other.crash(power=True)
            world.network.mend(host.id, other.id)
        for other in world.hosts:
            other.start()
        until(final_at(*world.hosts, transactions=payments), 40_000)


# --- proposals ---------------------------------------------------------------------------------------------------


def proposal_and_first_vote_ms(world: NodeWorld, ahead_ms: int) -> tuple[int, int | None, int]:
    """When a primary whose clock is `ahead_ms` beyond the drift proposed, when a backup voted for it (None: not in
    its view), and in which view its height was decided.
    """
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        primary = primary_of(world)
        primary.clock.offset_ms = SHAPE.drift_ms + ahead_ms
        sent = watch_sent(world)
        payment = world.clients.good_payment()
        world.clients.submit_at(primary, [payment])
        until(final_at(primary, transactions=[payment]), 30_000)
        height = world.rules.final[payment.tx_id]
        view = 0
        proposed_ms, voted_ms = -1, None
        for at_ms, member, message in sent:
            content = message.message if isinstance(message, ConsensusMessage) else None
            if isinstance(content, PrePrepare) and member == primary.id and content.vote.height == height:
                if proposed_ms < 0:
                    proposed_ms, view = at_ms, content.vote.view
            elif isinstance(content, Vote) and member != primary.id and voted_ms is None:
                mine = content.height == height and content.view == view and content.kind is VoteKind.PREPARE
                voted_ms = at_ms if mine else None
        return proposed_ms, voted_ms, world.rules.decided[height].view - view


def test_a_proposal_a_little_ahead_of_the_clock_is_held_until_it_fits() -> None:
    ahead_ms = BASE_MS // 4
    proposed_ms, voted_ms, views = proposal_and_first_vote_ms(scene(), ahead_ms)
    assert voted_ms is not None
    assert ahead_ms - 20 <= voted_ms - proposed_ms <= ahead_ms + 50
    assert views == 0


def test_a_proposal_far_ahead_of_the_clock_is_refused_and_not_held() -> None:
    _, voted_ms, views = proposal_and_first_vote_ms(scene(), BASE_MS)
    assert voted_ms is None
    assert views > 0


@pytest.mark.parametrize("how", ["silent", "empty"])
def test_a_primary_that_withholds_the_bytes_it_names_cannot_stop_the_network(how: str) -> None:
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        primary = primary_of(world)
        others = [host for host in world.hosts if host is not primary]
        world.network.withholding[primary.id] = how
        world.clients.submit_at(primary, [world.clients.good_payment()])
        open_ones = [world.clients.good_payment("A-1") for _ in range(2)]
        world.clients.submit_at(others[0], open_ones)
        # The fetch (1 s) must not look like an execution: then the time-out of the view, and one more for the next.
        until(final_at(*others, transactions=open_ones), 1_000 + 3 * BASE_MS)


@pytest.mark.parametrize("seed", range(23, 27))
def test_a_primary_that_garbles_what_it_says_ends_nobody_and_cannot_stop_the_network(seed: int) -> None:
    """Garbage in the place of a proposal ended the process of everybody who was sent it."""
    world = scene(seed=seed)
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        primary = primary_of(world)
        others = [host for host in world.hosts if host is not primary]
        world.network.garbling[primary.id] = 1_000
        world.clients.submit_at(primary, [world.clients.good_payment()])
        open_ones = [world.clients.good_payment("A-1") for _ in range(2)]
        world.clients.submit_at(others[0], open_ones)
        until(final_at(*others, transactions=open_ones), 1_000 + 3 * BASE_MS)
        assert world.network.counts["message garbled"]


@pytest.mark.parametrize("rotation_heights", [1, 10_000])
def test_nobody_pauses_between_blocks(rotation_heights: int) -> None:
    """A pause after each block was most of what a transaction waited for at half of the peak."""
    assert proposal_after_a_block_ms(rotation_heights) <= 40


def proposal_after_a_block_ms(rotation_heights: int) -> int:
    """How long after a full block a single transaction waits until it is proposed."""
    world = scene(shape=SHAPE._replace(rotation_heights=rotation_heights, empty_block_interval_ms=60_000))
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        for host in world.hosts:
            host.pace.disk = 5
        full = [world.clients.good_payment(account) for account in ("A-0", "A-1", "A-2", "A-3", "A-0", "A-1")]
        primary = primary_of(world)
        world.clients.submit_at(primary, full)
        until(final_at(*world.hosts, transactions=full), 10_000)
        world.rules.require("the scene", len({world.rules.final[item.tx_id] for item in full}) == 1)
        sent = watch_sent(world)
        single = world.clients.good_payment("A-2")
        started_ms = world.timeline.now_us // 1000
        world.clients.submit_at(primary_of(world), [single])
        until(final_at(*world.hosts, transactions=[single]), 10_000)
        return (
            next(
                at_ms
                for at_ms, _, message in sent
                if isinstance(message, ConsensusMessage) and isinstance(message.message, PrePrepare)
            )
            - started_ms
        )


# --- catching up -------------------------------------------------------------------------------------------------


def test_a_wiped_node_catches_up_and_votes_again() -> None:
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        host = world.hosts[2]
        host.crash()
        host.lose_disk(None)
        host.start()
        until(lambda: host.door is not None and host.height == max(other.height for other in world.hosts), 10_000)
        assert height_of(host.disk.contents) >= 1
        until(lambda: host.door is not None and host.door.service.status().voting, 60_000)


def test_catch_up_keeps_the_highest_view_voted_in_as_the_start_view_across_a_crash() -> None:
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        host = next(host for host in world.hosts if host is not primary_of(world))
        others = [other for other in world.hosts if other is not host]
        height, view = host.height + 1, 5
        host.crash(power=True)
        # It voted in view 5 of the next height, which the others decide in view 0.
        message = vote_bytes(world.founding.network.network_id, VoteKind.PREPARE, view, height, bytes(32))
        vote = Vote(VoteKind.PREPARE, view, height, bytes(32), host.index, sign(host.member.voting_key, message))
        slot = record_slot_of(vote)
        record = number(1_000) + encode(VoteRecord(vote, False, None))
        host.disk.write([(b"c" + number(height) + slot, record), (META_VOTED, b"1"), (META_NEVER_VOTED, None)])
        payment = world.clients.good_payment()
        world.clients.submit_at(others[0], [payment])
        until(final_at(*others, transactions=[payment]), 20_000)
        host.start()
        until(lambda: host.height >= height, 20_000)
        host.crash(power=True)
        data = host.disk.contents.get(b"h" + number(height))
        assert data is not None
        head = decode(data, HeadRecord, size_max=1_000_000)
        assert head.certificate is not None
        assert (head.certificate.view, head.start_view) == (0, view)
        host.start()
        # It asks for its view alone, and comes back to the others' with the next height.
        until(lambda: host.door is not None and host.door.service.status().ready, 60_000)


def test_a_node_whose_disk_was_full_goes_on_when_it_has_room() -> None:
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        host = world.hosts[1]
        host.disk.fail_in = 1
        payments = [world.clients.good_payment() for _ in range(3)]
        world.clients.submit_at(world.hosts[0], payments)
        # The node ends with its disk, is started when there is room, and has what the others decided meanwhile.
        until(lambda: host.starts == 2, 20_000)
        until(final_at(*world.hosts, transactions=payments), 30_000)
