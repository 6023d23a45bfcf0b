"""Rule 9.8 in the simulator: a doubled key is proved, who runs once never accused, and planted bugs are found."""

from collections import Counter
from collections.abc import Callable

import pytest

from consensus.effects import Send
from consensus.instances import Instances as Shipped
from consensus.members import Members
from consensus.messages import Presence, TwoInstances, presence_bytes
from tests.simulation.checks import NETWORK, Checks, Violation
from tests.simulation.faults import Plan, draw_plan
from tests.simulation.instances import CLONED, DRAWN, NONE, Instances
from tests.simulation.signing import Signer
from tests.simulation.world import Failure, World

Patch = pytest.MonkeyPatch
SEEDS = 8


def planned(instances: str, *faulty: str) -> Callable[[World], Plan]:
    def plan(world: World) -> Plan:
        return draw_plan(world)._replace(n=4, faulty=faulty, spares=0, instances=instances, poison_permille=0)

    return plan


def reached(instances: str, *faulty: str) -> Counter[str]:
    """The situations in a few seeds, in which every rule holds."""
    found: Counter[str] = Counter()
    for seed in range(SEEDS):
        outcome = World(seed, plan=planned(instances, *faulty)).run()
        assert outcome.failure is None
        found += outcome.reached
    return found


def first_failure(rule: str, *faulty: str) -> Failure | None:
    for seed in range(SEEDS):
        failure = World(seed, plan=planned(DRAWN, *faulty)).run().failure
        if failure is not None and failure.rule == rule:
            return failure
    return None


def test_two_processes_of_one_key_prove_each_other_and_stop() -> None:
    """9.5, 9.8, 10.3"""
    found = reached(DRAWN, "twin")
    assert found["one key twice proved"]
    assert found["a doubled key stops for good"]
    assert not found["one instance in two places"]


def test_a_machine_that_was_cloned_while_it_ran_has_one_instance_in_two_places() -> None:
    assert reached(CLONED, "twin")["one instance in two places"]


@pytest.mark.parametrize("faulty", ["rollback", "restore", "wipe"])
def test_one_process_at_a_time_is_never_taken_for_two(faulty: str) -> None:
    assert not reached(DRAWN, faulty)["one key twice proved"]


def test_without_instances_nothing_is_proved() -> None:
    assert not reached(NONE, "twin")["one key twice proved"]


# --- planted bugs ----------------------------------------------------------------------------------------


def one_meeting_is_taken_for_two(patch: Patch) -> None:
    shipped = Shipped._note

    def note(self: Shipped, peer: str, key: bytes, message: Presence) -> None:
        for other in self._met.get((peer, key), ()):
            if message.met == other.instance:
                self._accuse(peer, key, other, message)
        shipped(self, peer, key, message)

    patch.setattr(Shipped, "_note", note)


def an_earlier_process_of_the_key_stops_this_one(patch: Patch) -> None:
    def on_presence(self: Shipped, peer: str, message: Presence, members: Members, me: int | None) -> None:
        index = members.index(peer)
        if index is not None:
            self._note(peer, members.key(index), message)
            for other in self._met[(peer, members.key(index))]:
                if other.instance != message.instance:
                    self._context.emit(Send(peer, other))
        if message.member == me and message.instance != self._own:
            self._context.own_key_equivocates()

    patch.setattr(Shipped, "on_presence", on_presence)


@pytest.mark.parametrize(
    ("plant", "faulty", "rule"),
    [
        (one_meeting_is_taken_for_two, (), "no honest member is accused"),
        (one_meeting_is_taken_for_two, ("twin",), "a proof of two processes is genuine"),
        (an_earlier_process_of_the_key_stops_this_one, (), "who lives once never stops for good"),
    ],
)
def test_seeds_find_the_bug(
    monkeypatch: Patch, plant: Callable[[Patch], None], faulty: tuple[str, ...], rule: str
) -> None:
    plant(monkeypatch)
    assert first_failure(rule, *faulty) is not None


def test_a_genuine_proof_against_a_machine_that_ran_alone_is_a_broken_rule() -> None:
    signer = Signer(4)
    instances = Instances(0, DRAWN)
    first, second, third = (instances.at_start(name, 1, first_of_twin=False) for name in ("m1", "m1", "m1'"))

    def word(instance: bytes, met: bytes) -> Presence:
        signature = signer.sign_as(1)(presence_bytes(NETWORK, Presence(instance, met, 1, b"")))
        return Presence(instance, met, 1, signature)

    key, checks = signer.validator(1, 0).voting_key, Checks(signer)
    instances.judge(checks, "m0", TwoInstances(word(first, third), word(third, first)), key, signer)
    with pytest.raises(Violation, match="two processes are proved where two ran"):
        instances.judge(checks, "m0", TwoInstances(word(first, second), word(second, first)), key, signer)
    with pytest.raises(Violation, match="a proof of two processes is genuine"):
        instances.judge(checks, "m0", TwoInstances(word(first, third), word(third, second)), key, signer)
