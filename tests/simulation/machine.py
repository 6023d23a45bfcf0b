"""One simulated member: a shipped replica, its disk, its executor, and the hands that perform effects in order.

More than 500 lines because every fault, liar and scenario bends these same hands, by overriding one of them.
"""

import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from consensus.amnesia import HEIGHT_MAX
from consensus.effects import (
    Accuse,
    Applied,
    BlockStanding,
    Broadcast,
    BuildPayload,
    CatchUp,
    CheckPayload,
    Connected,
    Decide,
    Effect,
    Input,
    PayloadBuilt,
    PayloadChecked,
    Persist,
    PersistAbstention,
    Received,
    Record,
    Send,
    Synced,
    Tick,
    ViewChangeRecord,
    VoteRecord,
    Withhold,
    WorkWaiting,
)
from consensus.messages import Message, Vote, VoteKind
from consensus.replica import Replica
from consensus.status import Phase
from tests.simulation.block import DRIFT_MS, REQUESTS_MAX, Block, digest_of, parse, payload_of
from tests.simulation.checks import Conduct, Violation
from tests.simulation.clock import Clock
from tests.simulation.disk import Disk, Stored

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_US = 100_000
FETCH_BLOCKS_MAX = 16
FETCH_TRIES = 4
BACKLOG_MAX = 2_000
DURABLE = (Persist, PersistAbstention)

ReplicaFactory = Callable[..., Replica]


class Machine:
    """Runs one member. `honest` ones are judged by every rule; the others lend their key to a fault.

    `life` counts starts and ends of the process: whatever was scheduled in an earlier life never happens.
    """

    def __init__(self, world: "World", name: str, member: int, factory: ReplicaFactory, faulty: str = "") -> None:
        """`member` is its number, which is its place in the list of genesis too, if it has one there.

        `faulty`: "" or what befalls this member.

        "wipe" and "restore" (an older chain, votes forgotten, both known) leave it honest. "rollback" (an older
        image of the whole disk, which nothing on it tells), "twin" (two processes, one key) and every role of a
        traitor (byzantine/roles.py) do not.
        """
        self.world = world
        self.name = name
        self.member = member
        self.id = world.signer.name(member)
        self.factory = factory
        self.faulty = faulty
        self.honest = faulty in ("", "wipe", "restore")
        self.disk = Disk(initialised=True)
        self.conduct = Conduct(votes_above=0)
        self.lost_memory = False
        self.key_version = 0
        self.clock = Clock(world)
        self.slow = 1
        self.release = 0
        self._forbidden = False  # the replica was told to sign nothing
        self.build_late_us = 0  # how much longer than its executor its builder takes
        self.life = 0
        self.up = False
        self.paused = False
        self.crash_at: tuple[str, bool, Callable[[], None]] | None = None
        self.backlog: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self._reset()

    def _reset(self) -> None:
        self._queue: deque[Effect] = deque()
        self._busy = False
        self._syncing: list[Persist | PersistAbstention] = []
        self._bodies: dict[bytes, bytes] = {}
        self.known: dict[int, None] = {}
        self._told_waiting: tuple[bool, int, bool] | None = None
        self._passed_over = 0
        self._fetching = False
        self._deciding: Decide | None = None
        self._phase: Phase | None = None
        self._position = (0, 0)  # the (height, view) in work after the last step of this life

    # --- the process -------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process runs, with nothing but its disk; its links come up a moment later."""
        self._reset()
        self.life += 1
        self.up = True
        self.known = dict(self.disk.accepted)
        self.clock.start(self.world.pick(1, 1_000_000))
        self._forbidden = bool(self._withheld)
        head = self.disk.head(self.world.members)
        now_ms, time_ms = self.clocks()
        sign = self.world.signer.sign_as(self.member, self.key_version)
        self.replica = self.factory(
            self.world.config_for(self),
            head,
            msgspec.structs.replace(self.disk.memory(), withheld=self._withheld),
            sign,
            self.world.signer.verify,
            now_ms,
            time_ms,
        )
        self.world.note(self, f"starts at head {head.height}, start view {head.start_view}")
        self._perform_all(self.replica.start())
        self.world.after(self.world.pick(0, TICK_US), self, self._tick)
        self.world.network.on_start(self)

    def crash(self) -> None:
        """The process is gone. Of the writes in flight a prefix is on the disk: the torn one is gone as a whole."""
        if self._syncing:
            whole = self.world.pick(0, len(self._syncing) + 1)
            if whole < len(self._syncing):
                self.world.faults["torn last record"] += 1
            for effect in self._syncing[:whole]:
                self._write(effect)
        self.world.note(self, "crashes")
        self.life += 1
        self.up = False
        self.paused = False
        self.backlog.clear()
        self._reset()

    def wipe(self, backup: Disk | None) -> None:
        """The disk is empty, or what an older backup held; in both cases the own votes are forgotten."""
        forgotten = max(self.conduct.highest_height_voted(), self.conduct.votes_above)
        self.disk = Disk(initialised=False) if backup is None else backup
        self.disk.lose_memory()
        self.conduct = Conduct(votes_above=forgotten)
        for stored in self.disk.chain:
            self.conduct.decided_view[stored.block.height] = stored.certificate.view
        self.lost_memory = True

    def clocks(self) -> tuple[int, int]:
        """(monotonic ms of this life, wall clock ms)."""
        return self.clock.read()

    def _tick(self) -> None:
        self.step(Tick(*self.clocks()))
        self.world.after(TICK_US - self.world.pick(0, 10_000), self, self._tick)

    def pause_ends(self) -> None:
        """The process goes on with what had piled up; half the time a tick that jumped comes first."""
        self.paused = False
        backlog, self.backlog = self.backlog, []
        backlog = backlog[:BACKLOG_MAX]  # what has no room in the buffers of the transport is lost
        if self.world.chance(500):
            backlog.insert(0, (self._late_tick, ()))
        for action, arguments in backlog:
            self.world.after(0, self, action, *arguments)

    def _late_tick(self) -> None:
        self.step(Tick(*self.clocks()))

    # --- inputs ------------------------------------------------------------------------------------------

    def step(self, input_: Input) -> None:
        """Give one input to the replica and perform what it answers; nothing where the process just died."""
        if not self.up:
            return
        world = self.world
        if world.traced:
            world.tell_input(self, input_)
        replica = self.replica
        if isinstance(input_, Withhold):
            self._forbidden = bool(input_.reason)
        try:
            effects = replica.step(input_)
            if world.steps % 200 == 0:
                replica.status()
        except Exception as error:
            world.note(self, traceback.format_exc())
            raise Violation("step is total", f"{self.name} {type(input_).__name__} {error!r}") from error
        # Read past `status()`, which costs more than most steps: this is judged after every one of them.
        work = replica._work
        if (work.height, work.view) != self._position:
            self._moved((work.height, work.view))
        world.checks.steps += 1
        if world.watches_phases:
            self._watch_phase()
        if effects:
            if self.honest and self._forbidden:
                signed = [effect for effect in effects if isinstance(effect, Persist) and _is_own(effect.record)]
                world.checks.require("nothing is signed that is withheld", not signed, self.name, signed)
            self._perform_all(effects)

    def _watch_phase(self) -> None:
        phase = self.replica.status().phase
        if phase is not self._phase:
            if self._phase is not None:
                self.world.transitions[f"{self._phase} -> {phase}"] += 1
            self._phase = phase

    def _moved(self, position: tuple[int, int]) -> None:
        """The replica is at another (height, view) than after its last step of this life."""
        grows = position >= self._position
        self.world.checks.require("height and view only grow", grows, self.name, self._position, position)
        self._position = position

    def receive(self, peer: str, message: Message) -> None:
        """A message arrived from the authenticated peer `peer`."""
        self.step(Received(peer, message))

    def connected(self, peer: "Machine") -> None:
        """A link to `peer` is up (again): requests that one side lacks travel too."""
        self.step(Connected(peer.id))
        for request in [one for one in peer.known if one not in self.known]:
            self.world.after(self.world.pick(1_000, 50_000), self, self.learn, request)

    def withhold(self, reason: str) -> None:
        """The operator, or a check of the disk, forbids every signature; "" allows it again."""
        self.disk.withheld = reason
        if self.up:
            self.step(Withhold(self._withheld))

    @property
    def _withheld(self) -> str:
        differs = self.release != self.world.releases.agreed
        return "its code differs" if differs else self.disk.withheld

    def judge_release(self) -> None:
        """What most run may be another release by now."""
        if self.up:
            self.step(Withhold(self._withheld))

    def learn(self, request: int) -> None:
        """A client's request reached this member."""
        if self.up and request not in self.known and request not in self.disk.applied_requests:
            self.known[request] = self.disk.accepted[request] = None
            if not self.faulty:
                self.world.accepted[request] = None
            self._tell_work()

    def _tell_work(self) -> None:
        last = len(self.disk.chain[-1].block.requests) if self.disk.chain else 1
        state = (bool(self.known), self._passed_over, bool(self.known) and len(self.known) >= last)
        if state != self._told_waiting:
            self._told_waiting = state
            waiting, passed_over, full = state
            self.step(WorkWaiting(waiting, passed_over, full=full))

    # --- effects, in order -------------------------------------------------------------------------------

    def _perform_all(self, effects: list[Effect]) -> None:
        self._queue.extend(effects)
        if not self._busy:
            self._pump()

    def _pump(self) -> None:
        queue = self._queue
        while queue and not self._busy:
            effect = queue[0]
            if isinstance(effect, DURABLE):
                queue.popleft()
                self._begin_sync(effect)
            else:
                if self.crash_at is not None and self._crashes_at(effect, before=True):
                    return
                queue.popleft()
                self._perform(effect)
                if self.crash_at is not None and self._crashes_at(effect, before=False):
                    return
                if queue and self.world.chance(20):  # a crash may fall between any two effects
                    self._busy = True
                    self.world.after(self.world.pick(0, 3_000), self, self._resume)

    def _crashes_at(self, effect: Effect | None, *, before: bool) -> bool:
        """Crash if the fault that is planned for this machine is due at this side of `effect` (None: an apply)."""
        if self.crash_at is None:
            return False
        kind, side, crash = self.crash_at
        if side is not before or kind != ("applied" if effect is None else _moment(effect)):
            return False
        self.crash_at = None
        crash()
        return True

    def _begin_sync(self, effect: Persist | PersistAbstention) -> None:
        self._busy = True
        self._syncing = [effect]
        while self._queue and isinstance(following := self._queue[0], DURABLE):
            self._queue.popleft()
            self._syncing.append(following)
        planned = self.crash_at
        if planned is not None and planned[1] and any(_moment(effect) == planned[0] for effect in self._syncing):
            self.crash_at = None  # "before" a record means: while it is being written
            self.world.after(self.world.pick(0, 200), self, planned[2])
        self.world.after(self.world.sync_us(self), self, self._end_sync)

    def _end_sync(self) -> None:
        written, self._syncing = self._syncing, []
        for effect in written:
            self._write(effect)
        if any(self._crashes_at(effect, before=False) for effect in written):
            return
        if self.world.chance(50):  # durable, and the process has not noticed yet
            self.world.after(self.world.pick(0, 3_000), self, self._resume)
        else:
            self._resume()

    def _resume(self) -> None:
        self._busy = False
        self._pump()

    def _write(self, effect: Persist | PersistAbstention) -> None:
        if isinstance(effect, PersistAbstention):
            if effect.until == HEIGHT_MAX:
                self.world.on_stopped(self)
            self.disk.abstain_until = max(self.disk.abstain_until, effect.until)
            return
        record = effect.record
        body = None
        if isinstance(record, VoteRecord) and record.vote.kind is VoteKind.PREPARE:
            body = self._bodies.get(record.vote.digest) or self.disk.bodies.get(record.vote.digest)
            if self.honest:
                self.world.checks.require("a prepare is stored with its block", body is not None, self.name)
        if self.honest:
            self.world.checks.on_durable(self.name, self.member, self.conduct, self.disk, record)
        self.disk.write(record, body)

    def _perform(self, effect: Effect) -> None:
        if self.world.traced:
            self.world.tell_effect(self, effect)
        if isinstance(effect, Broadcast):
            self._emit(effect.message, None)
        elif isinstance(effect, Send):
            self._emit(effect.message, effect.peer)
        elif isinstance(effect, BuildPayload):
            self.world.after(self._build_us(effect), self, self._build, effect)
        elif isinstance(effect, CheckPayload):
            self.world.after(self._check_us(effect), self, self._check, effect, FETCH_TRIES)
        elif isinstance(effect, Decide):
            self._on_decide(effect)
        elif isinstance(effect, CatchUp):
            self._on_catch_up(effect)
        elif isinstance(effect, Accuse):
            self.world.on_accused(self, effect)

    def _emit(self, message: Message, peer: str | None) -> None:
        if self.honest:
            self.world.checks.on_sent(self.name, self.member, self.conduct, message)
        elif isinstance(message, Vote):
            self.world.checks.on_foreign_commit(message)
        if peer is None:
            self.world.network.broadcast(self, message)
        else:
            self.world.network.send(self, peer, message)

    # --- the executor ------------------------------------------------------------------------------------

    def _build_us(self, effect: BuildPayload) -> int:
        """How long building takes: on poison very long, unless it may be quarantined."""
        taken = sorted(self.known)[:REQUESTS_MAX]
        poison = [] if effect.allow_quarantine else [request for request in taken if request in self.world.poison]
        late_us = max((self.world.poison[request] for request in poison), default=0)
        return self.world.execute_us(self) + self.build_late_us + late_us

    def _check_us(self, effect: CheckPayload) -> int:
        """How long executing takes, poison that is not quarantined included."""
        block = parse(effect.payload) if effect.payload is not None and self.world.poison else None
        taken = [] if block is None else [one for one in block.requests if one not in block.quarantined]
        late_us = max((self.world.poison.get(request, 0) for request in taken), default=0)
        return self.world.execute_us(self) + late_us

    def _build(self, effect: BuildPayload) -> None:
        requests = sorted(self.known)[: max(1, REQUESTS_MAX >> effect.halvings)]
        stale = effect.height != self.disk.height + 1 or effect.parent != self.disk.head_digest
        fails = not effect.allow_quarantine and any(self.world.poison.get(request) == 0 for request in requests)
        if stale or fails or not (requests or effect.allow_empty):
            self.step(PayloadBuilt(effect.height, effect.view, None, None))
            return
        block = Block(
            height=effect.height,
            parent=effect.parent,
            time_ms=max(self.clocks()[1], self.disk.head_time_ms + 1),
            proposer=self.member,
            view=effect.view,
            requests=tuple(requests),
            quarantined=tuple(one for one in requests if effect.allow_quarantine and one in self.world.poison),
            release=self.release,
        )
        payload = payload_of(block)
        digest = digest_of(payload)
        self._bodies[digest] = payload
        self.step(PayloadBuilt(effect.height, effect.view, digest, payload))

    def _check(self, effect: CheckPayload, tries: int) -> None:
        payload = effect.payload or self.body(effect.digest)
        if payload is None:
            self._fetch_body(effect, tries)
            return
        block = parse(payload)
        first = effect.standing == BlockStanding.PROPOSED
        if block is not None and first and block.time_ms > self.clocks()[1] + DRIFT_MS:
            self.world.after(
                self.world.pick(100_000, 200_000), self, self._check, effect, tries
            )  # held until it fits
            return
        if block is not None and block.height != self.disk.height + 1:
            self._answer_check(effect, None, None, "the head is elsewhere")
            return
        reason = self._fault_in(effect, payload, block)
        if reason == "":
            self._bodies[effect.digest] = payload
            if block is not None and block.release != self.release:
                self.world.checks.reached[f"{effect.standing.name.lower()} by another release, and executed"] += 1
        self._answer_check(effect, reason == "", payload, reason)

    def _fault_in(self, effect: CheckPayload, payload: bytes, block: Block | None) -> str:
        if block is None or digest_of(payload) != effect.digest:
            return "malformed"
        if block.release != self.release and effect.standing < BlockStanding.PREPARED:
            return "another release made it"
        if block.parent != self.disk.head_digest or block.time_ms <= self.disk.head_time_ms:
            return "does not follow the head"
        if effect.standing == BlockStanding.PROPOSED and block.time_ms < self.clocks()[1] - DRIFT_MS:
            return "its time is long past"
        if effect.standing == BlockStanding.PROPOSED and self.world.signer.name(block.proposer) != effect.proposer:
            return "another member's block"
        if block.quarantined and not effect.allow_quarantine:
            return "settles a request without executing it, too early"
        if any(request in self.disk.applied_requests for request in block.requests):
            return "a request was settled before"
        return ""

    def _fetch_body(self, effect: CheckPayload, tries: int) -> None:
        if tries == 0:
            self._answer_check(effect, None, None, "nobody sent the body")
            return
        holders = effect.holders or (effect.proposer,)
        peer = self.world.network.reach(self, holders[self.world.pick(0, len(holders))])
        body = peer.body(effect.digest) if peer is not None else None
        if body is not None:
            self._bodies[effect.digest] = body
        self.world.after(self.world.fetch_us(), self, self._check, effect, tries - 1)

    def _answer_check(self, effect: CheckPayload, valid: bool | None, payload: bytes | None, reason: str) -> None:
        self.step(PayloadChecked(effect.height, effect.view, effect.digest, valid, payload, reason))

    def body(self, digest: bytes) -> bytes | None:
        """The payload under `digest`, from memory, from what was voted for, or from the last blocks."""
        known = self._bodies.get(digest) or self.disk.bodies.get(digest)
        if known is None:
            known = next((stored.payload for stored in self.disk.chain[-3:] if stored.digest == digest), None)
        return known

    # --- the chain ---------------------------------------------------------------------------------------

    def _on_decide(self, effect: Decide) -> None:
        if self.honest:
            self.world.checks.on_decide(self.name, self.conduct, effect.certificate, effect.start_view)
        self._deciding = effect
        self.world.after(self.world.sync_us(self) * 2, self, self._apply, effect)

    def _apply(self, effect: Decide) -> None:
        self._deciding = None
        if self._crashes_at(None, before=True):
            return
        if effect.height == self.disk.height + 1:
            payload = self.body(effect.digest)
            block = parse(payload) if payload is not None else None
            self.world.checks.require("a decided block is at hand", block is not None, self.name, effect.height)
            assert payload is not None
            assert block is not None
            self._extend(Stored(block, payload, effect.digest, effect.certificate, effect.start_view))
        if not self._crashes_at(None, before=False):
            self.world.after(self.world.pick(0, 2_000), self, self._applied)

    def _applied(self) -> None:
        self.step(Applied(self.disk.head(self.world.members)))
        self._tell_work()

    def _extend(self, stored: Stored) -> None:
        if self.honest:
            self.world.checks.on_applied(self.name, self.disk, stored, self.conduct)
        world = self.world
        oldest = min(self.known, default=None)
        before = self.disk.members(world.members)
        members = world.membership.after(before, stored.block.requests)
        resting = world.windows.after(self.disk.resting, stored.block.requests)
        self.disk.apply(stored._replace(members=members, resting=resting))
        world.checks.on_state(self.name, self.disk, members, honest=self.honest)
        if members is not before:
            world.on_members(self, members)
        self._bodies.clear()
        for request in stored.block.requests:
            self.known.pop(request, None)
        left_out = oldest is not None and oldest in self.known and len(stored.block.requests) < REQUESTS_MAX
        self._passed_over = self._passed_over + 1 if left_out else 0
        self.world.on_height(self)

    def _on_catch_up(self, effect: CatchUp) -> None:
        if not self._fetching:
            self._fetching = True
            self.world.after(self.world.fetch_us(), self, self._fetch_blocks, effect)

    def _fetch_blocks(self, effect: CatchUp) -> None:
        self._fetching = False
        if self._deciding is not None or self._busy or self._queue:
            # One writer, in order: a vote not yet durable would miss from the start view that is stored here.
            self._on_catch_up(effect)
            return
        others = tuple(machine.id for machine in self.world.machines if machine.id != self.id)
        best: Machine | None = None
        for name in (*effect.peers, *others):
            peer = self.world.network.reach(self, name)
            if peer is not None and (best is None or peer.disk.height > best.disk.height):
                best = peer
        if best is None:
            return
        fetched = best.disk.chain[self.disk.height : min(effect.target, self.disk.height + FETCH_BLOCKS_MAX)]
        for stored in fetched:
            self.world.checks.reached["caught up by a certified block"] += 1
            self.world.checks.on_fetched(self.name, stored)
            start_view = max(stored.certificate.view, self.disk.highest_view_voted(stored.block.height))
            self._extend(stored._replace(start_view=start_view))
        if fetched:
            self.step(Synced(self.disk.head(self.world.members)))
            self._tell_work()


def _moment(effect: Effect) -> str:
    """The kind of an effect as a planned crash names it."""
    if isinstance(effect, Persist):
        return type(effect.record).__name__
    if isinstance(effect, Broadcast | Send):
        message = effect.message
        return message.kind.name if isinstance(message, Vote) else type(message).__name__
    return type(effect).__name__


def _is_own(record: Record) -> bool:
    return isinstance(record, VoteRecord | ViewChangeRecord)
