"""The members change their own list while whole nodes run: at every boundary the network goes on deciding."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from consensus.amnesia import HEIGHT_MAX
from consensus.codec import encode
from consensus.effects import Effect, Input, Record, Tick
from consensus.members import Members, Validator
from consensus.replica import Replica
from contracts.governance import Governance
from contracts.membership import Membership
from node.ledger import Call, Transaction
from node.runtime.roster import FAREWELL_MS
from node.state import Overlay
from node.store import Store
from tests.simulation.nodes.disk import MemoryDatabase
from tests.simulation.nodes.founding import DATA, key_of, next_key, transaction
from tests.simulation.nodes.host import Host
from tests.simulation.nodes.test_scenes import SHAPE, everybody_votes, final_at, scene
from tests.simulation.nodes.timeline import START_MS
from tests.simulation.nodes.world import NodeWorld

HOUR_MS = 60 * 60 * 1000
Until = Callable[[Callable[[], bool], int], None]


def overlay(host: Host) -> Overlay:
    """The state of the head of a running node."""
    assert host.process is not None
    assert host.process.node is not None
    return Overlay(host.process.node._executor.view)


def status(host: Host, number: int) -> str:
    """What has become of a proposal, as this node has it; "" while it knows none."""
    found = Governance.proposals.read_from(overlay(host), number) if host.door is not None else None
    return "" if found is None else found.status


def validators(host: Host) -> list[str]:
    """Who decides the next height, as this node has it."""
    return [name for name, _ in Membership.read_validators(overlay(host))]


def standing(host: Host) -> str:
    """What the node says of itself."""
    assert host.door is not None
    return host.door.service.status().standing


class Assembly:
    """The members' administrators: they propose and vote through the nodes' doors."""

    def __init__(self, world: NodeWorld, until: Until) -> None:
        self.world = world
        self.until = until
        self.proposals = 0
        self._requests = 0

    def say(self, sender: str, method: str, args: dict[str, Any], contract: str = "governance") -> Transaction:
        """A transaction of the member's root principal is under way, at some node that serves."""
        made = self.made(sender, method, args, contract)
        self.submit(made)
        return made

    def submit(self, *said: Transaction) -> None:
        """They are under way together, at some node that serves."""
        self.world.clients.submit_at(next(host for host in self.world.hosts if host.door is not None), [*said])

    def made(self, sender: str, method: str, args: dict[str, Any], contract: str = "governance") -> Transaction:
        """A transaction of the member's root principal."""
        self._requests += 1
        return transaction(
            self.world.founding.network,
            sender,
            f"assembly-{self._requests}",
            [Call(contract, method, args)],
            START_MS + self.world.timeline.now_us // 1000 + HOUR_MS // 2,
            [key_of(sender)],
        )

    def decide(self, kind: str, member: str, by: str, voters: list[str], **args: Any) -> int:
        """The number of a new proposal that has its votes, and waits or has taken effect."""
        expires_at_ms = START_MS + self.world.timeline.now_us // 1000 + HOUR_MS
        live = [host for host in self.world.hosts if host.door is not None]
        said = [self.say(by, "propose", {"kind": kind, "member": member, "expires_at_ms": expires_at_ms, **args})]
        self.until(final_at(*live, transactions=said), 30_000)
        self.proposals += 1
        number = self.proposals
        said = [self.say(voter, "vote", {"proposal": number, "yes": True}) for voter in voters]
        self.until(final_at(*live, transactions=said), 30_000)
        self.until(lambda: all(status(host, number) in ("waiting", "effective") for host in live), 10_000)
        return number

    def goes_on(self, *hosts: Host, limit_ms: int = 60_000) -> None:
        """A payment is final at all these nodes."""
        payment = self.world.clients.good_payment("A-1")
        final = final_at(*hosts, transactions=[payment])
        asked: list[int] = []

        def settled() -> bool:
            # Whoever asked a node that was about to begin anew, and got no answer, asks again.
            if hosts[0].door is not None and hosts[0].starts not in asked:
                asked.append(hosts[0].starts)
                self.world.clients.submit_at(hosts[0], [payment])
            return final()

        self.until(settled, limit_ms)

    def effective(self, number: int, *hosts: Host, limit_ms: int = 60_000) -> None:
        """The proposal has taken effect at all these nodes."""
        self.until(lambda: all(host.up and status(host, number) == "effective" for host in hosts), limit_ms)


@pytest.mark.parametrize("rotation_heights", [10_000, pytest.param(1, marks=pytest.mark.slow)])
def test_the_primary_is_removed_and_the_rest_go_on_without_it(rotation_heights: int) -> None:
    world = scene(shape=SHAPE._replace(n=5, rotation_heights=rotation_heights))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        primary = world.primary_now()
        assert primary is not None
        others = [host for host in world.hosts if host is not primary]
        names = [host.id for host in others]
        number = assembly.decide("remove_member", primary.id, names[0], names[1:])
        assembly.effective(number, *world.hosts)
        height = primary.height
        assert validators(others[0]) == names
        assembly.goes_on(*others)
        # It knows the block that removed it, says so, and has nobody to talk to once it has said good-bye.
        until(lambda: primary.door is not None and standing(primary) == "removed", 10_000)
        assert primary.height >= height
        until(
            lambda: all(primary.process is None or not host_links(host, primary) for host in others),
            2 * FAREWELL_MS,
        )
        assembly.goes_on(*others)
        assert primary.door is not None
        answer = primary.door.service.status()
        assert not answer.ready
        assert not answer.voting
        assert any("no member any more" in reason for reason in answer.reasons)
        assert all(peer.id in names for peer in answer.peers)
        # Three of the four are a quorum: one more may fall.
        others[-1].crash(power=True)
        assembly.goes_on(*others[:-1])


def host_links(host: Host, other: Host) -> bool:
    """Whether a node holds a link to another."""
    assert host.process is not None
    assert host.process.transport is not None
    return other.id in host.process.transport.connected


@pytest.mark.slow
def test_a_suspended_member_comes_back_and_its_vote_counts() -> None:
    world = scene(shape=SHAPE._replace(n=5))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        guest = world.hosts[2]
        others = [host for host in world.hosts if host is not guest]
        names = [host.id for host in others]
        assembly.effective(assembly.decide("suspend_member", guest.id, names[0], names[1:]), *world.hosts)
        assembly.goes_on(*world.hosts)
        assert standing(guest) == "suspended"
        guest.crash(power=True)
        number = assembly.decide("resume_member", guest.id, names[0], names[1:3])
        assembly.goes_on(*others)
        assembly.goes_on(*others)
        # Its node is down: until it has said itself that it runs, it is no member of any quorum.
        assert [status(host, number) for host in others] == ["waiting"] * 4
        guest.start()
        assembly.effective(number, *world.hosts)
        until(everybody_votes(world), 60_000)
        # Four of five decide: with one down, the vote of who came back is needed.
        others[0].crash(power=True)
        assembly.goes_on(guest, *others[1:])


@pytest.mark.slow
def test_a_voting_key_changes_at_one_height_across_restarts() -> None:
    world = scene(shape=SHAPE._replace(n=4))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        owner, others = world.hosts[1], [world.hosts[0], *world.hosts[2:]]
        names = [host.id for host in others]
        owner.crash(power=True)
        owner.start()
        until(everybody_votes(world), 60_000)
        number = assembly.decide("rotate_voting_key", owner.id, owner.id, names[:2], voting_key=next_key(owner.id))
        assembly.effective(number, *world.hosts)
        assert dict(Membership.read_validators(overlay(others[0])))[owner.id] == next_key(owner.id)
        owner.crash(power=True)
        assembly.goes_on(*others)
        owner.start()
        until(everybody_votes(world), 60_000)
        # Three of four decide: with one down, the vote under the new key is needed.
        others[0].crash(power=True)
        assembly.goes_on(owner, *others[1:])


@pytest.mark.slow
def test_no_change_makes_a_list_that_cannot_decide() -> None:
    world = scene(shape=SHAPE._replace(n=6))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        live, dead = world.hosts[:4], world.hosts[4:]
        for host in dead:
            host.crash(power=True)
        names = [host.id for host in live]
        number = assembly.decide("remove_member", names[3], names[0], names[1:])
        for _ in range(3):
            assembly.goes_on(*live)
        # Of the five that would be left four decide, and three run.
        assert [status(host, number) for host in live] == ["waiting"] * 4
        dead[0].start()
        assembly.effective(number, *live[:3], dead[0])
        assembly.goes_on(*live[:3], dead[0])


@pytest.mark.slow
def test_who_comes_back_without_its_memory_is_not_counted_before_it_may_vote() -> None:
    """A wiped node that was suspended said it was ready, was counted, and then abstained: nobody could decide."""
    world = scene(shape=SHAPE._replace(n=5))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        guest = world.hosts[2]
        others = [host for host in world.hosts if host is not guest]
        names = [host.id for host in others]
        assembly.effective(assembly.decide("suspend_member", guest.id, names[0], names[1:]), *world.hosts)
        guest.crash(power=True)
        guest.lose_disk(None)
        # Of the five four decide, and three of the others run: from the first block on its vote is needed.
        others[3].crash(power=True)
        guest.start()
        number = assembly.decide("resume_member", guest.id, names[0], names[1:3])
        assembly.effective(number, guest, *others[:3])
        assembly.goes_on(guest, *others[:3])


@pytest.mark.slow
def test_a_key_that_lives_twice_can_be_rotated_and_its_member_votes_again() -> None:
    """Its node never said that it was ready, and the promise of silence outlived the key for which it was made."""
    world = scene(shape=SHAPE._replace(n=4))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        owner, others = world.hosts[1], [world.hosts[0], *world.hosts[2:]]
        names = [host.id for host in others]
        owner.crash(power=True)
        network = world.founding.network
        store = Store(
            DATA, network.network_id, network.genesis_hash, open_database=lambda _: MemoryDatabase(owner.disk)
        )
        store.begin_with_key(owner.member.voting_key)
        store.put_records([], {}, HEIGHT_MAX)
        store.close()
        owner.start()
        until(lambda: owner.door is not None, 20_000)
        new = next_key(owner.id)
        number = assembly.decide("rotate_voting_key", owner.id, owner.id, names[:2], voting_key=new)
        assembly.effective(number, *world.hosts)
        until(everybody_votes(world), 60_000)
        others[0].crash(power=True)
        assembly.goes_on(owner, *others[1:])


@pytest.mark.slow
def test_who_begins_anew_records_and_sends_nothing_that_it_did_not_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that ends was told of the block that brought it back, and voted with 64 zero bytes."""
    unsigned: list[Record] = []
    put_records = Store.put_records

    def watched(self: Store, records: Sequence[Record], *rest: Any) -> None:
        unsigned.extend(record for record in records if bytes(64) in encode(record))
        put_records(self, records, *rest)

    monkeypatch.setattr(Store, "put_records", watched)
    world = scene(shape=SHAPE._replace(n=5))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        guest = world.primary_now()
        assert guest is not None
        others = [host for host in world.hosts if host is not guest]
        names = [host.id for host in others]
        for _ in range(3):
            assembly.effective(assembly.decide("suspend_member", guest.id, names[0], names[1:]), *others)
            assembly.goes_on(*others)
            number = assembly.decide("resume_member", guest.id, names[0], names[1:3])
            for _ in range(6):
                world.clients.submit_at(others[0], [world.clients.good_payment("A-1")])
            assembly.effective(number, *others)
            assembly.goes_on(*others)
            until(everybody_votes(world), 60_000)
    assert guest.starts >= 3
    assert not unsigned


def test_who_begins_anew_gives_its_replica_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stepped on while its parts were closed one by one, and stopped with a failure if it came to sign."""
    stepped: list[Replica] = []
    step = Replica.step

    def watched(self: Replica, given: Input) -> list[Effect]:
        stepped.append(self)
        return step(self, given)

    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        host = world.hosts[1]
        assert host.process is not None
        node = host.process.node
        assert node is not None
        head, ending = node._chain.head, node._driver._replica
        listed = [
            Validator(item.id, next_key(item.id) if item.id == host.id else item.voting_key)
            for item in head.members
        ]
        monkeypatch.setattr(Replica, "step", watched)
        # As if the newest block had brought a rotation into force; what comes next comes in the same turn.
        node._on_synced(msgspec.structs.replace(head, members=Members(tuple(listed))))
        node._driver.give(Tick(world.timeline.now_us // 1000, START_MS + world.timeline.now_us // 1000))
        until(lambda: host.starts == 2 and everybody_votes(world)(), 60_000)
    assert stepped
    assert ending not in stepped


def test_who_is_named_anew_twice_at_a_time_begins_anew_all_the_same() -> None:
    """The second of two rotations took back what the first had begun: the process ended with 0, and stayed down."""
    world = scene()
    with world.staged() as until:
        until(everybody_votes(world), 20_000)
        host = world.hosts[1]
        assert host.process is not None
        node = host.process.node
        assert node is not None
        head = node._chain.head
        for key in (next_key(host.id), b"a later key".ljust(32, b".")):
            listed = [Validator(item.id, key if item.id == host.id else item.voting_key) for item in head.members]
            node._on_synced(msgspec.structs.replace(head, members=Members(tuple(listed))))
        until(lambda: host.starts == 2 and everybody_votes(world)(), 60_000)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["nothing", "rotated", "resumed"])
def test_a_disk_from_before_the_list_changed_makes_nobody_vote_twice(change: str) -> None:
    """The image did not know the key of the newer votes that it was shown, passed them over and voted again."""
    world = scene(shape=SHAPE._replace(n=5))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        owner = world.hosts[1]
        others = [host for host in world.hosts if host is not owner]
        names = [host.id for host in others]
        if change == "resumed":
            assembly.effective(assembly.decide("suspend_member", owner.id, names[0], names[1:]), *world.hosts)
            assembly.goes_on(*world.hosts)
        image = owner.disk.copy()
        taken_at = owner.height
        if change == "resumed":
            assembly.effective(assembly.decide("resume_member", owner.id, names[0], names[1:3]), *world.hosts)
        elif change == "rotated":
            new = next_key(owner.id)
            number = assembly.decide("rotate_voting_key", owner.id, owner.id, names[:3], voting_key=new)
            assembly.effective(number, *world.hosts)
        until(everybody_votes(world), 60_000)
        for _ in range(4):
            assembly.goes_on(*world.hosts)
        voted_at = owner.height
        assert voted_at > taken_at
        owner.crash(power=True)
        owner.lose_disk(image)
        # It is held to what it said before: the rule of one vote for one slot judges it on.
        owner.forgetful = False
        owner.start()
        for _ in range(3):
            assembly.goes_on(*others)
        until(everybody_votes(world), 60_000)
        assert abstained(owner) >= voted_at
        assembly.goes_on(*world.hosts)


def abstained(host: Host) -> int:
    """Up to which height the node has promised to sign nothing."""
    assert host.process is not None
    assert host.process.node is not None
    return host.process.node._driver.status().abstain_until


@pytest.mark.slow
def test_members_that_one_block_brings_back_begin_anew_at_once_and_vote() -> None:
    """As those that a recovery left out: the others are no quorum of the list after that block."""
    world = scene(shape=SHAPE._replace(n=7))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        back, others = world.hosts[4:], world.hosts[:4]
        names = [host.id for host in others]
        for place, host in enumerate(back):
            voters = [*names[1:], *(later.id for later in back[place + 1 :])]
            assembly.effective(assembly.decide("suspend_member", host.id, names[0], voters), *world.hosts)
        starts = [host.starts for host in back]
        expires_at_ms = START_MS + world.timeline.now_us // 1000 + HOUR_MS
        changes = [{"kind": "resume_member", "member": host.id, "expires_at_ms": expires_at_ms} for host in back]
        until(final_at(*others, transactions=[assembly.say(names[0], "propose", item) for item in changes]), 30_000)
        numbers = [assembly.proposals + 1 + place for place in range(len(back))]
        for voter in names[1:3]:
            votes = [assembly.made(voter, "vote", {"proposal": number, "yes": True}) for number in numbers]
            assembly.submit(*votes)
            until(final_at(*others, transactions=votes), 30_000)
        for number in numbers:
            assembly.effective(number, *world.hosts)
        until(everybody_votes(world), 60_000)
        assembly.goes_on(*world.hosts)
        assert [host.starts for host in back] == [before + 1 for before in starts]
        assert others[0].process is not None
        assert others[0].process.node is not None
        view = others[0].process.node._store.snapshot()
        last = max(view.member_changes())
        assert [len(view.head_at(height).validators) for height in (last - 1, last)] == [4, 7]
