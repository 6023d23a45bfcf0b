"""One simulated network of whole nodes from one seed: everything in it, and the order in which it happens."""

import contextlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Generator

import structlog

from consensus.codec import CodecError, decode
from consensus.messages import PAYLOAD_SIZE_MAX, PrePrepare, Vote
from node.config import NetworkConfig, NodeConfig
from node.ledger import CertifiedBlock, Proposal, Transaction
from node.runtime.node import Node
from node.runtime.surroundings import Surroundings
from node.wire import BLOCK_SIZE_MAX, Blocks, ConsensusMessage, PayloadReply, Transactions, WireMessage
from tests.simulation.checks import Violation
from tests.simulation.nodes.assembly import BOUND_MS as GOVERNING_MS
from tests.simulation.nodes.assembly import Assembly
from tests.simulation.nodes.clients import Clients
from tests.simulation.nodes.faults import Faults, Plan, draw_plan
from tests.simulation.nodes.founding import founding_of
from tests.simulation.nodes.host import Host
from tests.simulation.nodes.links import TIMING, Network
from tests.simulation.nodes.rules import Rules
from tests.simulation.nodes.timeline import Timeline
from tests.simulation.world import Failure, Outcome, brief

STEPS_MAX = 400_000
HEIGHTS_AFTER_HEALING = 4
LOOK_US = 100_000
ASK_WHY_US = 1_000_000
NodeFactory = Callable[[NodeConfig, NetworkConfig, Surroundings], Node]


class NodeWorld:
    """Virtual time, the machines, their network, their clients, and the rules."""

    def __init__(
        self,
        seed: int,
        *,
        make_node: NodeFactory = Node,
        plan: Callable[["NodeWorld"], Plan] = draw_plan,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`plan` draws the constants of the run, `make_node` makes each node, `trace` gets a line an event."""
        self.seed = seed
        self.timeline = Timeline(seed)
        self.make_node = make_node
        self._trace = trace
        self.faults: Counter[str] = Counter()
        self.plan = plan(self)
        self.founding = founding_of(self.plan.shape)
        self.rules = Rules(self.founding.network)
        self.reached = self.rules.reached
        self.network = Network(self.timeline, self._on_sent, self._on_received)
        order = sorted(range(self.plan.shape.n), key=lambda _: self.timeline.pick(0, 1 << 30))
        faulty = dict(zip(order, self.plan.faulty, strict=False))
        self.hosts = [Host(self, index, faulty.get(index, "")) for index in range(self.plan.shape.n)]
        self._by_id = {host.id: host for host in self.hosts}
        self.clients = Clients(self)
        self._faults = Faults(self, self.plan)
        self.assembly = Assembly(self) if self.plan.governed else None
        self._early: set[tuple[str, bytes]] = set()
        self._steps = 0
        self._healed_us = 0
        self._target = 0
        self._recovered_us: int | None = None

    # --- the run -----------------------------------------------------------------------------------------

    def run(self, until: int = STEPS_MAX) -> Outcome:
        """The run is over: everybody recovered after healing, a rule broke, or `until` steps were made."""
        failure = None
        with self._quiet():
            try:
                for host in self.hosts:
                    self.timeline.after(self.timeline.pick(0, 300_000), host.start)
                self.clients.begin()
                self._faults.begin()
                if self.assembly is not None:
                    self.assembly.begin()
                self.timeline.after(ASK_WHY_US, self._ask_why)
                self._advance(lambda: self._recovered_us is not None or self.timeline.steps >= until)
            except Violation as violation:
                failure = Failure(self.seed, self.timeline.steps, violation.rule, violation.detail)
                self.note(None, f"BROKEN {violation}")
            except Exception as error:
                error.add_note(f"scripts/simulate --nodes --seed {self.seed} --until {self.timeline.steps}")
                raise
            finally:
                self._end()
        self.reached.update(self.network.counts)
        now_us = self.timeline.now_us
        recovered = self._recovered_us if self._recovered_us is not None else now_us
        return Outcome(
            seed=self.seed,
            steps=self._steps,
            heights=max(self.rules.decided, default=0),
            recovery_ms=(recovered - self._healed_us) // 1000 if self._healed_us else 0,
            bound_ms=self.bound_ms,
            faults=self.faults,
            rules=self.rules.judged,
            reached=self.reached,
            failure=failure,
        )

    @contextlib.contextmanager
    def staged(self) -> Generator[Callable[[Callable[[], bool], int], None], None, None]:
        """All nodes are about to start, and nobody but the caller does anything to them.

        Yields `until(holds, limit_ms)`: the run has gone on until `holds()`, or Violation after `limit_ms`.
        """

        def until(holds: Callable[[], bool], limit_ms: int) -> None:
            end_us = self.timeline.now_us + limit_ms * 1000
            self.timeline.at(end_us, lambda: None)
            self._advance(lambda: holds() or self.timeline.now_us >= end_us)
            self.rules.require("what was waited for", holds(), f"not within {limit_ms} ms")

        with self._quiet():
            try:
                for host in self.hosts:
                    self.timeline.after(0, host.start)
                yield until
            finally:
                self._end()

    def _advance(self, done: Callable[[], bool]) -> None:
        while not done():
            self.timeline.step()
            if self.rules.violation is not None:
                raise self.rules.violation

    def _end(self) -> None:
        """Every process is dead, and nothing of it is left."""
        self._steps = self.timeline.steps
        for host in self.hosts:
            host.crash()
        self.timeline.finish()

    @contextlib.contextmanager
    def _quiet(self) -> Generator[None, None, None]:
        """The nodes' logs go to the trace, and chance inside them comes from the seed."""
        before, state = structlog.get_config(), random.getstate()
        random.seed(self.seed)
        trace = self._trace

        def tell(logger: object, level: str, event: structlog.types.EventDict) -> str:
            if trace is not None:
                detail = " ".join(f"{name}={value!s:.60}" for name, value in event.items() if name != "event")
                self.note(None, f"log: {level} {event['event']} {detail}")
            raise structlog.DropEvent

        level = 10 if trace is not None else 50
        structlog.configure(
            processors=[tell],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            cache_logger_on_first_use=False,
        )
        try:
            with warnings.catch_warnings():
                # Work that a dying process had not begun is never awaited.
                warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
                yield
        finally:
            structlog.configure(**before)
            random.setstate(state)

    def broken(self, rule: str, *detail: object) -> None:
        """Something happened that never may; the run ends with it, wherever it was noticed."""
        with contextlib.suppress(Violation):
            self.rules.require(rule, False, *detail)

    def primary_now(self) -> Host | None:
        """Whom the most advanced running node takes for the primary."""
        running = [host for host in self.hosts if host.door is not None]
        if not running:
            return None
        door = max(running, key=lambda host: host.height).door
        assert door is not None
        return self._by_id.get(door.service.status().primary)

    # --- what happens ------------------------------------------------------------------------------------

    def _on_sent(self, member: str, message: WireMessage) -> None:
        host = self._by_id[member]
        self.rules.on_sent(member, host.disk.contents, host.forgetful, message)
        self.reached[f"sent {type(message).__name__}"] += 1
        if isinstance(message, ConsensusMessage):
            content = message.message
            self.reached[f"sent {type(content).__name__}"] += 1
            if isinstance(content, Vote) and (member, content.digest) in self._early:
                self._early.discard((member, content.digest))
                self.reached["voted for a proposal that was held"] += 1

    def _on_received(self, member: str, message: WireMessage) -> None:
        """Count the situations that a message makes for who receives it."""
        host = self._by_id[member]
        if self._trace is not None:
            self.note(host, f"<- {brief(message)}")
        # What was garbled inside is of no use here; the node has to live with it.
        with contextlib.suppress(CodecError):
            self._count_situations(host, message)

    def _count_situations(self, host: Host, message: WireMessage) -> None:
        if isinstance(message, ConsensusMessage) and isinstance(message.message, PrePrepare):
            vote = message.message.vote
            header = decode(message.message.payload, Proposal, size_max=PAYLOAD_SIZE_MAX).header
            ahead_ms = header.time_ms - host.clock.time_ms() - self.plan.shape.drift_ms
            if vote.height == host.height + 1 and ahead_ms > 0:
                within = ahead_ms <= self.plan.shape.base_timeout_ms // 2
                self.reached["a proposal to be held" if within else "a proposal too early to be held"] += 1
                self._early.add((host.id, vote.digest))
        elif isinstance(message, Blocks) and message.blocks:
            first = decode(message.blocks[0], CertifiedBlock, size_max=BLOCK_SIZE_MAX).body.header.height
            heights = range(first, first + len(message.blocks))
            self.reached["a block came by catch-up"] += 1
            following = host.height + 1
            if following in heights and (host.applying == following or self.rules.committed(host.id, following)):
                self.reached["a block came by catch-up while it was being decided"] += 1
        elif isinstance(message, Transactions) and message.transactions:
            self.reached["bodies came from a holder"] += 1
        elif isinstance(message, PayloadReply) and message.payload is not None:
            self.reached["a payload came from a holder"] += 1

    def on_height(self, host: Host) -> None:
        """`host` applied a block, or began again."""
        self.note(host, f"has height {host.height}")

    def on_end(self, host: Host, code: int, expected: bool) -> None:
        """A node has ended by itself."""
        self.rules.require("a node ends only when told or with its disk", expected, host.id, "exit code", code)
        self._faults.on_end(host)

    def _ask_why(self) -> None:
        """Everything that a status page asks of a node has an answer at any time."""
        for host in self.hosts:
            door = host.door
            if door is not None:
                self._judge_answers(host)
        self.timeline.after(ASK_WHY_US, self._ask_why)

    def _judge_answers(self, host: Host) -> None:
        assert host.door is not None
        service = host.door.service
        try:
            why, status = service.why(), service.status()
            service.members()
        except Exception as error:
            self.broken("why always has an answer", host.id, repr(error))
            return
        self.rules.require("why always has an answer", bool(why.sentences), host.id)
        agree = bool(status.reasons) != status.ready
        self.rules.require("who is not ready says why", agree, host.id, status.ready, status.reasons)

    # --- after healing -----------------------------------------------------------------------------------

    @property
    def bound_ms(self) -> int:
        """How long healing may take at most, in virtual ms, from the mended network on.

        A link that only one side takes for open is given up after `silence_s` and dialled within `retry_cap_s`.
        A peer that failed catch-up is asked again after at most 30 s, gossip asks again after 10 s. Then
        views: one under way, one for each of f faulty primaries, one that members enter at different times; each
        costs at most two capped time-outs. Then the heights, each of which may wait for an empty block and use up a
        time-out.
        """
        shape = self.plan.shape
        links_ms = round((TIMING.silence_s + 2 * TIMING.retry_cap_s) * 1000)
        asking_ms = 30_000 + 10_000
        views_ms = 2 * shape.timeout_cap_ms * ((shape.n - 1) // 3 + 2)
        heights_ms = (HEIGHTS_AFTER_HEALING + 4) * (shape.empty_block_interval_ms + shape.base_timeout_ms)
        governing_ms = GOVERNING_MS if self.assembly is not None else 0
        return links_ms + asking_ms + views_ms + heights_ms + governing_ms

    def on_healed(self) -> None:
        """From now on nothing fails."""
        self._healed_us = max(1, self.timeline.now_us)
        if self.assembly is not None:
            self.assembly.healed = True
        self._target = max(host.height for host in self.hosts) + HEIGHTS_AFTER_HEALING
        self.note(None, f"healed; everybody must reach height {self._target} within {self.bound_ms} ms")
        self.timeline.after(self.bound_ms * 1000, self._judge_progress)
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        lacking = self._lacking()
        if lacking is None:
            self._recovered_us = self.timeline.now_us
            self.rules.judged["progress after healing"] += 1
            self._judge_fates()
        else:
            self.timeline.after(LOOK_US, self._look_for_the_end)

    def _lacking(self) -> str | None:
        """The first thing that keeps the run from its end: a height, a vote, a fate, an equal head; or None."""
        for host in self.hosts:
            door = host.door
            if door is None:
                return f"{host.id} does not serve"
            if host.height < self._target:
                return f"{host.id} is at {host.height} of {self._target}: {door.service.why().sentences}"
            status = door.service.status()
            if status.standing != "active":
                return f"{host.id} is {status.standing}"
            if host.forgetful and not status.voting:
                # By rule 9.4 of consensus: who voted before it saw its own newer vote takes that for another's.
                self.reached["a disk put back silenced its member"] += 1
            elif not status.voting or not status.ready:
                return f"{host.id} is not ready: {status.reasons}"
        unsettled = None if self.assembly is None else self.assembly.lacking()
        if unsettled is not None:
            return unsettled
        self.clients.stop()
        for host in self.hosts:
            assert host.door is not None
            status = host.door.service.status()
            if status.pending_transactions:
                return f"{host.id}: {status.pending_transactions} transactions wait at {status.height}"
        heads = {(host.height, self.rules.decided[host.height].digest) for host in self.hosts}
        if len(heads) > 1:
            return f"heads differ: {[(host.id, host.height) for host in self.hosts]}"
        for promises in self.clients.promises.values():
            for promise in promises:
                door = promise.host.door
                assert door is not None
                if promise.stands and door.service.fate(promise.transaction.tx_id).status == "pending":
                    return f"{promise.host.id}: {promise.transaction.tx_id.hex()} waits"
        return None

    def _judge_progress(self) -> None:
        self.rules.require("progress after healing", False, self._lacking())

    def _judge_fates(self) -> None:
        """Each promise was kept, in the same way at every node; each end is one that the ledger bears out."""
        for tx_id, promises in self.clients.promises.items():
            transaction = promises[0].transaction
            fates = [(host.id, host.door.service.fate(tx_id)) for host in self.hosts if host.door is not None]
            height = self.rules.final.get(tx_id)
            if height is not None:
                receipts = fates[0][1].receipts
                for name, fate in fates:
                    same = (fate.status, fate.height, fate.receipts) == ("final", height, receipts)
                    self.rules.require("one fate everywhere", same, name, tx_id.hex(), fate)
                continue
            self.rules.require("only final transactions have receipts", all(f.status != "final" for _, f in fates))
            for promise in promises:
                if promise.stands:
                    self._judge_ending(promise.host, transaction)

    def _judge_ending(self, host: Host, transaction: Transaction) -> None:
        assert host.door is not None
        fate = host.door.service.fate(transaction.tx_id)
        body = transaction.body
        where = (host.id, transaction.tx_id.hex(), fate)
        self.rules.require("no accepted transaction is lost", fate.status in ("expired", "dropped"), *where)
        if fate.status == "expired":
            self.reached["an accepted transaction expired"] += 1
            self.rules.require("expired only by a block", self.rules.time_ms >= body.expires_at_ms, *where)
        else:
            self.reached["an accepted transaction dropped"] += 1
            other = self.rules.request_used(body.sender, body.request_id)
            good = fate.code == "request_conflict" and other not in (None, transaction.tx_id)
            self.rules.require("dropped only for another", good, *where)

    # --- the trace ---------------------------------------------------------------------------------------

    def note(self, host: Host | None, text: str) -> None:
        """One line of the trace."""
        if self._trace is not None:
            who = host.id if host is not None else "--"
            self._trace(f"{self.timeline.steps:6d} {self.timeline.now_us / 1000:11.3f} ms {who:7s} {text}")
