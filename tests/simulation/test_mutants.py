"""Planted bugs: each names the rule that finds it, so a clean run of the shipped replica means something.

A bug is planted for one run by replacing one function of the replica or of the world around it; nothing of it is
in the shipped code. Scenes (scenes.py) lead straight into the one situation where a bug matters; the others are
found by the faults that seeds draw.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from consensus import height as height_module
from consensus.amnesia import Amnesia
from consensus.checks import Checks as BlockChecks
from consensus.config import Config
from consensus.context import Context
from consensus.effects import (
    Applied,
    BlockStanding,
    Decide,
    Effect,
    Head,
    Input,
    Memory,
    Persist,
    PersistAbstention,
    PreparedRecord,
    Record,
    Synced,
    Tick,
)
from consensus.height import HeightInWork
from consensus.members import Members
from consensus.messages import Certificate, PrePrepare, ViewChange, Vote
from consensus.pace import Pace
from consensus.pledge import Pledge
from consensus.replica import Replica
from consensus.suspicion import Suspicion
from consensus.view_change import gives_right
from consensus.votes import VoteBook
from tests.simulation import scenes
from tests.simulation.disk import Disk
from tests.simulation.faults import Plan, draw_plan
from tests.simulation.machine import ReplicaFactory
from tests.simulation.stage import Stage
from tests.simulation.world import Failure, World

Patch = pytest.MonkeyPatch
SEEDS_MAX = 60


# --- bugs in choosing and opening a view -----------------------------------------------------------------


def the_lowest_prepared_wins(patch: Patch) -> None:
    def lowest(view_changes: tuple[ViewChange, ...]) -> Certificate | None:
        proofs = [change.prepared for change in view_changes if change.prepared is not None]
        return min(proofs, key=lambda proof: proof.view, default=None)

    patch.setattr(height_module, "highest_prepared", lowest)


def a_new_view_ignores_what_is_prepared(patch: Patch) -> None:
    patch.setattr(height_module, "highest_prepared", lambda view_changes: None)


def a_view_change_forgets_the_prepared_certificate(patch: Patch) -> None:
    shipped = Pledge.ask

    def ask(self: Pledge, view: int, decided: Certificate | None) -> ViewChange | None:
        kept, self.prepared = self.prepared, None
        try:
            return shipped(self, view, decided)
        finally:
            self.prepared = kept

    patch.setattr(Pledge, "ask", ask)


def a_lock_gives_the_right_to_refuse(patch: Patch) -> None:
    shipped = HeightInWork._accept

    def accept(self: HeightInWork, message: PrePrepare) -> None:
        locked = self.pledge.prepared
        if locked is None or locked.digest == message.vote.digest:
            shipped(self, message)

    patch.setattr(HeightInWork, "_accept", accept)


def a_parent_certificate_opens_a_view_after_a_vote(patch: Patch) -> None:
    def opens(self: HeightInWork, parent: Certificate | None, view: int) -> bool:
        right = gives_right(parent, view, self.head, self._context.verifier)
        return self.outcome is None and view >= self.pledge.floor and right

    patch.setattr(HeightInWork, "_opens_by_parent", opens)


def everybody_follows_the_highest_view_asked_for(patch: Patch) -> None:
    patch.setattr(height_module, "jump_target", lambda asked, members: max(asked, default=None))


def a_view_asked_for_is_no_floor(patch: Patch) -> None:
    patch.setattr(Pledge, "floor", property(lambda self: self.voted_view or 0))


def a_member_returns_below_a_view_it_voted_in(patch: Patch) -> None:
    shipped = Replica.step

    def step(self: Replica, input_: Input) -> list[Effect]:
        return [
            msgspec.structs.replace(effect, start_view=effect.certificate.view)
            if isinstance(effect, Decide)
            else effect
            for effect in shipped(self, input_)
        ]

    patch.setattr(Replica, "step", step)


# --- bugs in voting --------------------------------------------------------------------------------------


def the_last_vote_of_a_slot_counts(patch: Patch) -> None:
    shipped = VoteBook.add

    def add(self: VoteBook, vote: Vote) -> Vote | None:
        if self.find(vote.kind, vote.view, vote.member) is not None:
            (self._current if vote.view == self._view else self._ahead)[vote.kind].pop(vote.member)
        return shipped(self, vote)

    patch.setattr(VoteBook, "add", add)


def a_clock_check_on_a_re_proposal(patch: Patch) -> None:
    shipped = BlockChecks.ask

    def ask(
        self: BlockChecks, digest: bytes, view: int, payload: bytes | None, standing: BlockStanding, *rest: Any
    ) -> None:
        shipped(self, digest, view, payload, BlockStanding.PROPOSED, *rest)

    patch.setattr(BlockChecks, "ask", ask)


def a_prepare_is_stored_without_its_block(patch: Patch) -> None:
    shipped = Disk.write
    patch.setattr(Disk, "write", lambda self, record, body: shipped(self, record, None))


# --- bugs in what is remembered --------------------------------------------------------------------------


def silence_up_to_one_height_above_the_known(patch: Patch) -> None:
    shipped = Amnesia.conclude

    def conclude(self: Amnesia, head_height: int, members: Members, me: str) -> int | None:
        until = shipped(self, head_height, members, me)
        if until is not None:
            self.until = until = until - 1
        return until

    patch.setattr(Amnesia, "conclude", conclude)


class One(Members):
    """Takes one member for a quorum."""

    @property
    def quorum(self) -> int:
        return 1


def one_member_is_asked_instead_of_a_quorum(patch: Patch) -> None:
    shipped = Amnesia.conclude

    def conclude(self: Amnesia, head_height: int, members: Members, me: str) -> int | None:
        return shipped(self, head_height, One(members.validators), me)

    patch.setattr(Amnesia, "conclude", conclude)


def the_newest_vote_that_others_show_is_ignored(patch: Patch) -> None:
    patch.setattr(Context, "own_vote_unknown", lambda self, height: None)


# --- bugs in judging time --------------------------------------------------------------------------------


def time_outs_grow_without_a_cap(patch: Patch) -> None:
    patch.setattr(Config, "timeout_ms", lambda self, failed: self.base_timeout_ms << min(max(failed, 0), 16))


def clocks_run_on_after_a_pause(patch: Patch) -> None:
    patch.setattr(Suspicion, "restart", lambda self: None)


def a_slow_primary_is_never_accused(patch: Patch) -> None:
    patch.setattr(Pace, "tick", lambda self, now_ms, passed_ms, **rest: False)


def censorship_is_never_noticed(patch: Patch) -> None:
    shipped = Context.work_announced

    def announced(self: Context, waiting: bool, passed_over: int, **rest: Any) -> None:
        shipped(self, waiting, 0, **rest)

    patch.setattr(Context, "work_announced", announced)


class Staged(NamedTuple):
    """One bug, the scene in which it shows, and the rule that says so."""

    bug: Callable[[Patch], None]
    scene: type[Stage]
    rule: str


STAGED = (
    Staged(the_lowest_prepared_wins, scenes.TwoPrepared, "a new view re-proposes what is prepared"),
    Staged(a_new_view_ignores_what_is_prepared, scenes.TwoPrepared, "a new view re-proposes what is prepared"),
    Staged(
        a_view_change_forgets_the_prepared_certificate, scenes.TwoPrepared, "a view change hides nothing prepared"
    ),
    Staged(a_lock_gives_the_right_to_refuse, scenes.LeftOut, "nobody refuses what a new view allows"),
    Staged(
        a_parent_certificate_opens_a_view_after_a_vote, scenes.DecidedTwice, "a later view is opened by a new view"
    ),
    Staged(a_member_returns_below_a_view_it_voted_in, scenes.DecidedBelow, "start view"),
    Staged(everybody_follows_the_highest_view_asked_for, scenes.AbsurdView, "nobody follows a liar to its view"),
    Staged(the_last_vote_of_a_slot_counts, scenes.TwoVotes, "two votes in one slot are proved"),
    Staged(a_clock_check_on_a_re_proposal, scenes.OldBlock, "progress after healing"),
    Staged(a_prepare_is_stored_without_its_block, scenes.PowerCut, "a power cut everywhere stops nobody"),
    Staged(silence_up_to_one_height_above_the_known, scenes.FarAhead, "amnesia"),
    Staged(one_member_is_asked_instead_of_a_quorum, scenes.OneOldFriend, "amnesia"),
    Staged(the_newest_vote_that_others_show_is_ignored, scenes.DiskImage, "one vote per slot"),
    Staged(time_outs_grow_without_a_cap, scenes.LongOutage, "progress after healing"),
    Staged(clocks_run_on_after_a_pause, scenes.Asleep, "who was paused accuses nobody"),
    Staged(a_slow_primary_is_never_accused, scenes.Sluggish, "a slow primary is replaced"),
    Staged(censorship_is_never_noticed, scenes.Censored, "no request waits for ever"),
)


LONG = (scenes.OldBlock, scenes.LongOutage, scenes.Sluggish, scenes.Censored)


@pytest.mark.parametrize(
    "staged",
    [pytest.param(one, marks=pytest.mark.slow) if one.scene in LONG else one for one in STAGED],
    ids=lambda staged: staged.bug.__name__,
)
def test_a_scene_shows_the_bug_and_nothing_without_it(staged: Staged, monkeypatch: Patch) -> None:
    assert staged.scene().run().failure is None
    staged.bug(monkeypatch)
    failure = staged.scene().run().failure
    assert failure is not None
    assert failure.rule == staged.rule


# --- bugs that the faults of ordinary seeds find -----------------------------------------------------------


class SendsBeforeItWrites(Replica):
    """Performs every other effect of a step before the records."""

    def step(self, input_: Input) -> list[Effect]:
        effects = super().step(input_)
        return sorted(effects, key=lambda effect: isinstance(effect, Persist | PersistAbstention))


class WritesNot(Replica):
    """Never writes one kind of record."""

    kind: type[Record]

    def step(self, input_: Input) -> list[Effect]:
        return [
            effect
            for effect in super().step(input_)
            if not (isinstance(effect, Persist) and isinstance(effect.record, self.kind))
        ]


class WritesNoProof(WritesNot):
    """Commits without the prepare certificate on disk."""

    kind = PreparedRecord


class NeverLooksAtTheClock(Replica):
    """Loses every tick after its first twenty: no time-out, no resend."""

    ticks = 0

    def step(self, input_: Input) -> list[Effect]:
        if isinstance(input_, Tick):
            self.ticks += 1
            if self.ticks > 20:
                return []
        return super().step(input_)


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


def counts_too_few(config: Config, head: Head, *rest: Any) -> Replica:
    return CountsTooFew(config, msgspec.structs.replace(head, members=Few(head.members.validators)), *rest)


def votes_at_once_without_memory(config: Config, head: Head, memory: Memory, *rest: Any) -> Replica:
    """A replica that believes at every start that it has never voted."""
    blank = Memory(never_voted=True, voted=False, abstain_until=0, records=())
    return Replica(config, head, blank, *rest)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "rules"),
    [
        (SendsBeforeItWrites, ("durable before sent",)),
        (WritesNoProof, ("commit only what is prepared",)),
        (NeverLooksAtTheClock, ("progress after healing",)),
        (counts_too_few, ("certificate",)),
        (
            votes_at_once_without_memory,
            ("one vote per slot", "never below a view asked for or voted in", "start view"),
        ),
    ],
)
def test_seeds_find_the_bug(factory: ReplicaFactory, rules: tuple[str, ...]) -> None:
    failure = first_failure(factory, rules=rules)
    assert failure.rule in rules
    # The replay line shows the very same failure again.
    assert World(failure.seed, factory=factory).run(failure.step).failure == failure


@pytest.mark.slow
def test_seeds_find_a_member_that_lost_its_disk_and_votes_at_once() -> None:
    failure = first_failure(votes_at_once_without_memory, with_faulty(4, "wipe"), ("amnesia",))
    assert failure.rule == "amnesia"


@pytest.mark.slow
def test_seeds_find_a_vote_below_a_view_asked_for(monkeypatch: Patch) -> None:
    a_view_asked_for_is_no_floor(monkeypatch)
    rule = "never below a view asked for or voted in"
    assert first_failure(Replica, rules=(rule,)).rule == rule


@pytest.mark.slow
def test_seeds_find_a_release_that_refuses_what_the_one_before_it_had_prepared(monkeypatch: Patch) -> None:
    """Everybody came back with other code while a block was prepared: nobody could vote for it, nor for another."""
    shipped = BlockChecks.ask

    def ask(
        self: BlockChecks, digest: bytes, view: int, payload: bytes | None, standing: BlockStanding, *rest: Any
    ) -> None:
        known = BlockStanding.VOTED if standing is BlockStanding.PREPARED else standing
        shipped(self, digest, view, payload, known, *rest)

    monkeypatch.setattr(BlockChecks, "ask", ask)
    rule = "progress after healing"
    assert first_failure(Replica, rules=(rule,)).rule == rule
