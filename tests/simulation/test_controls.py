"""Planted bugs: each checker finds the mistake that it is there for, so a clean run means something."""

from collections.abc import Callable

import msgspec
import pytest

from consensus.effects import (
    Applied,
    Decide,
    Effect,
    Head,
    Input,
    Memory,
    Persist,
    PersistAbstention,
    PreparedRecord,
    Synced,
    Tick,
)
from consensus.members import Members
from consensus.replica import Replica
from tests.simulation.faults import Plan, draw_plan
from tests.simulation.machine import ReplicaFactory
from tests.simulation.world import Failure, World

SEEDS_MAX = 60


class SendsBeforeItWrites(Replica):
    """Performs every other effect of a step before the records."""

    def step(self, input_: Input) -> list[Effect]:
        effects = super().step(input_)
        return sorted(effects, key=lambda effect: isinstance(effect, Persist | PersistAbstention))


class WritesNoProof(Replica):
    """Commits without the prepare certificate on disk."""

    def step(self, input_: Input) -> list[Effect]:
        return [
            effect
            for effect in super().step(input_)
            if not (isinstance(effect, Persist) and isinstance(effect.record, PreparedRecord))
        ]


class NeverLooksAtTheClock(Replica):
    """Loses every tick after its first hundred: no time-out, no resend."""

    ticks = 0

    def step(self, input_: Input) -> list[Effect]:
        if isinstance(input_, Tick):
            self.ticks += 1
            if self.ticks > 100:
                return []
        return super().step(input_)


class ForgetsWhereItVoted(Replica):
    """Starts the next height in the certificate's view, whatever it voted in."""

    def step(self, input_: Input) -> list[Effect]:
        return [
            msgspec.structs.replace(effect, start_view=effect.certificate.view)
            if isinstance(effect, Decide)
            else effect
            for effect in super().step(input_)
        ]


class Few(Members):
    """Takes f + 1 votes for a quorum."""

    @property
    def quorum(self) -> int:
        return self.f + 1


class CountsTooFew(Replica):
    """Works with the member list `Few`."""

    def step(self, input_: Input) -> list[Effect]:
        if isinstance(input_, Applied | Synced):
            head = msgspec.structs.replace(input_.head, members=Few(input_.head.members.validators))
            input_ = msgspec.structs.replace(input_, head=head)
        return super().step(input_)


def counts_too_few(config: object, head: Head, *rest: object) -> Replica:
    return CountsTooFew(config, msgspec.structs.replace(head, members=Few(head.members.validators)), *rest)  # type: ignore[arg-type]


def without_memory(config: object, head: Head, memory: Memory, *rest: object) -> Replica:
    """A replica that believes at every start that it has never voted."""
    blank = Memory(never_voted=True, voted=False, abstain_until=0, records=())
    return Replica(config, head, blank, *rest)  # type: ignore[arg-type]


def with_faulty(n: int, *kinds: str) -> Callable[[World], Plan]:
    def plan(world: World) -> Plan:
        return draw_plan(world)._replace(n=n, faulty=kinds, request_every_us=100_000)

    return plan


def first_failure(
    factory: ReplicaFactory, plan: Callable[[World], Plan] = draw_plan, rules: tuple[str, ...] = ()
) -> Failure:
    """The first failure of a rule among `rules` in the first seeds."""
    for seed in range(SEEDS_MAX):
        failure = World(seed, factory=factory, plan=plan).run().failure
        if failure is not None and (not rules or failure.rule in rules):
            return failure
    raise AssertionError(f"{SEEDS_MAX} seeds did not find the planted bug")


@pytest.mark.parametrize(
    ("factory", "rules"),
    [
        (SendsBeforeItWrites, ("durable before sent",)),
        (WritesNoProof, ("commit only what is prepared",)),
        (NeverLooksAtTheClock, ("progress after healing",)),
        (ForgetsWhereItVoted, ("start view",)),
        (counts_too_few, ("certificate",)),
        (without_memory, ("one vote per slot", "never below a view asked for or voted in", "start view")),
    ],
)
def test_a_planted_bug_is_found(factory: ReplicaFactory, rules: tuple[str, ...]) -> None:
    failure = first_failure(factory, rules=rules)
    assert failure.rule in rules
    # The replay line shows the very same failure again.
    assert World(failure.seed, factory=factory).run(failure.step).failure == failure


def test_a_member_that_lost_its_disk_and_votes_at_once_is_found() -> None:
    failure = first_failure(without_memory, with_faulty(4, "wipe"), ("amnesia",))
    assert failure.rule == "amnesia"


def test_two_doubled_keys_among_four_members_fork_the_chain() -> None:
    """The control at f + 1: where the assumption is broken, agreement must be seen to break."""
    assert first_failure(Replica, with_faulty(4, "twin", "twin"), ("agreement",)).rule == "agreement"
