"""One simulated member: a shipped replica, its disk, its executor, and the hands that perform effects in order."""

import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from consensus.effects import (
    Accuse,
    Applied,
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
    Send,
    Synced,
    Tick,
    VoteRecord,
    WorkWaiting,
)
from consensus.messages import Message, Vote, VoteKind
from consensus.replica import Replica
from tests.simulation.block import DRIFT_MS, REQUESTS_MAX, Block, digest_of, parse, payload_of
from tests.simulation.checks import Conduct, Violation
from tests.simulation.disk import Disk, Stored

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_US = 100_000
WALL_CLOCK_START_MS = 1_700_000_000_000
FETCH_BLOCKS_MAX = 16
FETCH_TRIES = 4

ReplicaFactory = Callable[..., Replica]


class Machine:
    """Runs one member. `honest` ones are judged by every rule; the others lend their key to a fault.

    `life` counts starts and ends of the process: whatever was scheduled in an earlier life never happens.
    """

    def __init__(self, world: "World", name: str, member: int, factory: ReplicaFactory, faulty: str = "") -> None:
        """`faulty`: "" or what befalls this member.

        "wipe" and "restore" (an older chain, votes forgotten, both known) leave it honest. "rollback" (an older
        image of the whole disk, which nothing on it tells), "twin" (two processes, one key) and "liar" do not.
        """
        self.world = world
        self.name = name
        self.member = member
        self.id = world.members.id(member)
        self.factory = factory
        self.faulty = faulty
        self.honest = faulty not in ("rollback", "twin", "liar")
        self.disk = Disk(initialised=True)
        self.conduct = Conduct(votes_above=0)
        self.lost_memory = False
        self.skew_ms = 0
        self.slow = 1
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
        self._told_waiting: tuple[bool, int] | None = None
        self._passed_over = 0
        self._fetching = False
        self._deciding: Decide | None = None
        self._height = 0  # the highest height in work that the status of this life showed
        self._born_us = 0
        self._monotonic_base_ms = 0

    # --- the process -------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process runs, with nothing but its disk; its links come up a moment later."""
        self._reset()
        self.life += 1
        self.up = True
        self._born_us = self.world.now_us
        self._monotonic_base_ms = self.world.pick(1, 1_000_000)
        head = self.disk.head(self.world.members)
        now_ms, time_ms = self.clocks()
        sign = self.world.signer.sign_as(self.member)
        self.replica = self.factory(
            self.world.config_for(self.member),
            head,
            self.disk.memory(),
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
        """The process is gone; a prefix of the writes in flight may have reached the disk."""
        for effect in self._syncing[: self.world.pick(0, len(self._syncing) + 1)]:
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
        now_ms = self.world.now_us // 1000
        return self._monotonic_base_ms + now_ms - self._born_us // 1000, WALL_CLOCK_START_MS + now_ms + self.skew_ms

    def _tick(self) -> None:
        now_ms, time_ms = self.clocks()
        self.step(Tick(now_ms, time_ms))
        self.world.after(TICK_US - self.world.pick(0, 10_000), self, self._tick)

    def pause_ends(self) -> None:
        """The process goes on with what had piled up; half the time a tick that jumped comes first."""
        self.paused = False
        backlog, self.backlog = self.backlog, []
        if self.world.chance(500):
            backlog.insert(0, (self._late_tick, ()))
        for action, arguments in backlog:
            self.world.after(0, self, action, *arguments)

    def _late_tick(self) -> None:
        now_ms, time_ms = self.clocks()
        self.step(Tick(now_ms, time_ms))

    # --- inputs ------------------------------------------------------------------------------------------

    def step(self, input_: Input) -> None:
        """Give one input to the replica and perform what it answers; nothing where the process just died."""
        if not self.up:
            return
        self.world.tell_input(self, input_)
        try:
            effects = self.replica.step(input_)
            if isinstance(input_, Applied | Synced) or self.world.chance(10):
                height = self.replica.status().height
                self.world.checks.require(
                    "heights only grow", height >= self._height, self.name, self._height, height
                )
                self._height = height
        except Violation:
            raise
        except Exception as error:
            self.world.note(self, traceback.format_exc())
            raise Violation("step is total", f"{self.name} {type(input_).__name__} {error!r}") from error
        self.world.checks.rules["step is total"] += 1
        self._perform_all(effects)

    def receive(self, peer: str, message: Message) -> None:
        """A message arrived from the authenticated peer `peer`."""
        self.step(Received(peer, message))

    def connected(self, peer: "Machine") -> None:
        """A link to `peer` is up (again): requests that one side lacks travel too."""
        self.step(Connected(peer.id))
        for request in peer.known:
            self.world.after(self.world.pick(1_000, 50_000), self, self.learn, request)

    def learn(self, request: int) -> None:
        """A client's request reached this member."""
        if self.up and request not in self.known and request not in self.disk.applied_requests:
            self.known[request] = None
            self._tell_work()

    def _tell_work(self) -> None:
        state = (bool(self.known), self._passed_over)
        if state != self._told_waiting:
            self._told_waiting = state
            self.step(WorkWaiting(*state))

    # --- effects, in order -------------------------------------------------------------------------------

    def _perform_all(self, effects: list[Effect]) -> None:
        self._queue.extend(effects)
        self._pump()

    def _pump(self) -> None:
        while self._queue and not self._busy:
            if self._crashes_at(self._queue[0], before=True):
                return
            effect = self._queue.popleft()
            if isinstance(effect, Persist | PersistAbstention):
                self._begin_sync(effect)
            else:
                self._perform(effect)
                if self._crashes_at(effect, before=False):
                    return
                if self._queue and self.world.chance(20):  # a crash may fall between any two effects
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
        while self._queue and isinstance(self._queue[0], Persist | PersistAbstention):
            following = self._queue.popleft()
            assert isinstance(following, Persist | PersistAbstention)
            self._syncing.append(following)
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
        self.world.tell_effect(self, effect)
        if isinstance(effect, Broadcast):
            self._emit(effect.message, None)
        elif isinstance(effect, Send):
            self._emit(effect.message, effect.peer)
        elif isinstance(effect, BuildPayload):
            self.world.after(self.world.execute_us(self), self, self._build, effect)
        elif isinstance(effect, CheckPayload):
            self.world.after(self.world.execute_us(self), self, self._check, effect, FETCH_TRIES)
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

    def _build(self, effect: BuildPayload) -> None:
        requests = sorted(self.known)[: max(1, REQUESTS_MAX >> effect.halvings)]
        stale = effect.height != self.disk.height + 1 or effect.parent != self.disk.head_digest
        if stale or not (requests or effect.allow_empty):
            self.step(PayloadBuilt(effect.height, effect.view, None, None))
            return
        block = Block(
            height=effect.height,
            parent=effect.parent,
            time_ms=max(self.clocks()[1], self.disk.head_time_ms + 1),
            proposer=self.member,
            view=effect.view,
            requests=tuple(requests),
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
        if block is not None and effect.first and block.time_ms > self.clocks()[1] + DRIFT_MS:
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
        self._answer_check(effect, reason == "", payload, reason)

    def _fault_in(self, effect: CheckPayload, payload: bytes, block: Block | None) -> str:
        if block is None or digest_of(payload) != effect.digest:
            return "malformed"
        if block.parent != self.disk.head_digest or block.time_ms <= self.disk.head_time_ms:
            return "does not follow the head"
        if effect.first and self.world.members.id(block.proposer) != effect.proposer:
            return "another member's block"
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
        oldest = min(self.known, default=None)
        self.disk.apply(stored)
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
        others = tuple(validator.id for validator in self.world.members if validator.id != self.id)
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
