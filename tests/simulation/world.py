"""One simulated network from one seed: virtual time, everything in it, and the order in which it happens.

Nothing here reads a real clock, real randomness or the order of a set; a seed is one run, always the same.
"""

import random
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from consensus.config import Config
from consensus.effects import Accuse, Effect, Input, Received, Tick
from consensus.members import Members
from consensus.messages import TwoInstances
from consensus.replica import Replica
from tests.simulation import coverage
from tests.simulation.block import REQUESTS_MAX
from tests.simulation.byzantine.roles import ROLES
from tests.simulation.byzantine.traitor import Traitor
from tests.simulation.checks import NETWORK, Checks, Violation
from tests.simulation.faults import Faults, Plan, draw_plan
from tests.simulation.instances import Instances
from tests.simulation.machine import Machine, ReplicaFactory
from tests.simulation.membership import Change, Membership
from tests.simulation.network import Network
from tests.simulation.releases import Releases
from tests.simulation.signing import Signer
from tests.simulation.windows import Windows

STEPS_MAX = 200_000
HEIGHTS_AFTER_HEALING = 5
PASSED_OVER_MAX = 4
GOSSIP_US = 300_000
PHASES_WATCHED_EVERY = 50
NOTHING: Counter[str] = Counter()
UNSHOWN = ("signature", "signatures", "payload", "members", "decided_by")


class Failure(NamedTuple):
    """Where and how a run broke a rule."""

    seed: int
    step: int
    rule: str
    detail: str


class Outcome(NamedTuple):
    """One finished run. `recovery_ms` is the virtual time from healing until everybody had progressed."""

    seed: int
    steps: int
    heights: int
    recovery_ms: int
    bound_ms: int
    faults: Counter[str]
    rules: Counter[str]
    reached: Counter[str]
    failure: Failure | None
    numbers: Counter[str] = NOTHING
    """The numbered rules of consensus/README.md, where they are counted."""
    records: Counter[str] = NOTHING
    transitions: Counter[str] = NOTHING


class World:
    """Virtual time in microseconds, a heap of what is due, and the machines it happens to."""

    def __init__(
        self,
        seed: int,
        *,
        factory: ReplicaFactory = Replica,
        plan: Callable[["World"], Plan] = draw_plan,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self._random = random.Random(seed).random
        self._trace = trace
        self.traced = trace is not None
        self.now_us = 0
        self.steps = 0
        self.watches_phases = seed % PHASES_WATCHED_EVERY == 0
        self.transitions: Counter[str] = Counter()
        self._heap: list[tuple[int, int, Machine | None, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = 0
        self.faults: Counter[str] = Counter()
        self.plan = plan(self)
        self.signer = Signer(self.plan.n, self.plan.spares + self.plan.observers)
        self.members = self.signer.members
        self.membership = Membership(self)
        self.windows = Windows(self)
        self.accepted: dict[int, None] = {}  # every request that a member without memory loss promised to settle
        self.poison: dict[int, int] = {}  # request -> how long executing it takes (us); 0: building with it fails
        self.checks = Checks(self.signer)
        self._instances = Instances(seed, self.plan.instances)
        self.network = Network(self)
        self.releases = Releases(self)
        self.machines = self._people(factory)
        self._faults = Faults(self, self.plan)
        self._healed_us = 0
        self._target = 0
        self._owed: tuple[int, ...] = ()
        self._backlog_blocks = 0
        self._requests = 0
        self._recovered_us: int | None = None

    def _people(self, factory: ReplicaFactory) -> list[Machine]:
        """One machine a member, two for a doubled key; who is faulty is drawn."""
        order = sorted(range(self.plan.n), key=lambda _: self._random())
        faulty = dict(zip(order, self.plan.faulty, strict=False))
        machines: list[Machine] = []
        for member in range(self.plan.n):
            kind = faulty.get(member, "")
            make = Traitor if kind in ROLES else Machine
            name = f"m{member}"
            machines.append(make(self, name, member, factory, kind))
            if kind == "twin":
                machines.append(make(self, name + "'", member, factory, kind))
        for number in range(self.plan.n, self.plan.n + self.plan.spares + self.plan.observers):
            machines.append(Machine(self, f"m{number}", number, factory))
        return machines

    # --- chance and time ---------------------------------------------------------------------------------

    def pick(self, low: int, high: int) -> int:
        """A number in [low, high); `low` where the interval is empty."""
        return low + int(self._random() * (high - low)) if high > low else low

    def chance(self, permille: int) -> bool:
        """True `permille` times in a thousand."""
        return self._random() * 1000 < permille

    def after(
        self, delay_us: int, machine: Machine | None, action: Callable[..., None], *arguments: object
    ) -> None:
        """`action` is due in `delay_us`; never, if `machine` dies before."""
        self._sequence += 1
        life = machine.life if machine is not None else 0
        heappush(self._heap, (self.now_us + delay_us, self._sequence, machine, life, action, arguments))

    def sync_us(self, machine: Machine) -> int:
        """How long this write to the disk takes."""
        return self.pick(200_000, 500_000) if self.chance(5) else self.pick(200, 3_000 * min(machine.slow, 10))

    def execute_us(self, machine: Machine) -> int:
        """How long this block takes to build or to check."""
        return self.pick(1_000, 10_000) * machine.slow

    def fetch_us(self) -> int:
        """How long asking a peer for blocks or a body takes."""
        return 2 * self.pick(*self.network.delay_us)

    # --- the run -----------------------------------------------------------------------------------------

    def config_for(self, machine: Machine) -> Config:
        """The constants of the process that starts on `machine`; the last ones are observers."""
        observes = machine.member >= self.plan.n + self.plan.spares
        copied = machine.faulty == "twin" and machine.life == 1
        instance = self._instances.at_start(machine.name, machine.member, first_of_twin=copied)
        if self._instances.in_two_places(instance):
            self.checks.reached["one instance in two places"] += 1
        return Config(
            network=NETWORK,
            member=None if observes else machine.id,
            rotation_heights=self.plan.rotation_heights,
            base_timeout_ms=self.plan.base_timeout_ms,
            timeout_cap_ms=self.plan.timeout_cap_ms,
            status_interval_ms=self.plan.status_interval_ms,
            empty_block_interval_ms=self.plan.empty_block_interval_ms,
            passed_over_max=PASSED_OVER_MAX,
            instance=instance,
        )

    def run(self, until: int = STEPS_MAX) -> Outcome:
        """The run is over: everybody progressed after healing, a rule broke, or `until` steps were made."""
        failure = None
        coverage.take()
        try:
            for machine in self.machines:
                if not self.plan.n <= machine.member < self.plan.n + self.plan.spares:
                    self.after(self.pick(0, 200_000), None, machine.start)
            self._faults.begin()
            self.windows.begin()
            self.after(0, None, self._request)
            self.after(GOSSIP_US, None, self._gossip)
            one_step = self._one_step
            while self._recovered_us is None and self.steps < until:
                one_step()
        except Violation as violation:
            failure = Failure(self.seed, self.steps, violation.rule, violation.detail)
            self.note(None, f"BROKEN {violation}")
        except Exception as error:
            error.add_note(f"in the simulator itself: scripts/simulate --seed {self.seed} --until {self.steps}")
            raise
        for kind, count in self.network.counts.items():
            self.faults[f"message {kind}"] += count
        recovered = self._recovered_us if self._recovered_us is not None else self.now_us
        return Outcome(
            seed=self.seed,
            steps=self.steps,
            heights=max(machine.disk.height for machine in self.machines),
            recovery_ms=(recovered - self._healed_us) // 1000 if self._healed_us else 0,
            bound_ms=self.bound_ms,
            faults=self.faults,
            rules=self.checks.rules + Counter({"step is total": self.checks.steps}),
            reached=self.checks.reached,
            failure=failure,
            numbers=coverage.take(),
            records=self.checks.records,
            transitions=self.transitions,
        )

    def _one_step(self) -> None:
        at_us, _, machine, life, action, arguments = heappop(self._heap)
        if machine is not None:
            if machine.life != life or not machine.up:
                return
            if machine.paused:
                self.now_us = at_us
                self.steps += 1
                machine.backlog.append((action, arguments))
                return
        self.now_us = at_us
        self.steps += 1
        action(*arguments)

    def primary_now(self) -> Machine | None:
        """The machine that the most advanced running one takes for the primary."""
        running = [machine for machine in self.machines if machine.up]
        if not running:
            return None
        name = max(running, key=lambda machine: machine.disk.height).replica.status().primary
        return next((machine for machine in running if machine.id == name), None)

    def leap(self, passed_us: int) -> None:
        """Every process and every message stands still for so long: only the clocks went on."""
        self.now_us += passed_us
        self._heap = [(at_us + passed_us, *rest) for at_us, *rest in self._heap]  # type: ignore[misc]

    # --- clients -----------------------------------------------------------------------------------------

    def request(self) -> int:
        """A client's request spreads to every member it reaches; anti-entropy repairs the rest. Its number."""
        request = self.issue()
        first = self.machines[self.pick(0, len(self.machines))]
        for machine in self.machines:
            if machine is first or self.network.reach(first, machine.id) is machine:
                self.after(self.pick(*self.network.delay_us), machine, machine.learn, request)
        return request

    def issue(self) -> int:
        """The number of a new request."""
        self._requests += 1
        return self._requests - 1

    def _request(self) -> None:
        request = self.request()
        if not self._healed_us and self.chance(self.plan.poison_permille):
            self.faults["poison"] += 1
            self.poison[request] = self.plan.base_timeout_ms * (0, 300, 1_000, 3_000)[self.pick(0, 4)]
        every = 200_000 if self._healed_us else self.plan.request_every_us
        self.after(self.pick(every // 4, 2 * every), None, self._request)

    def change(self, kind: str, number: int, version: int = 0) -> None:
        """Ask for a change of the member list: it counts when a block has decided it."""
        self.membership.changes[self.request()] = Change(kind, number, version)

    def _gossip(self) -> None:
        """Two nodes that reach each other exchange the requests that one of them lacks."""
        one, other = (self.machines[self.pick(0, len(self.machines))] for _ in range(2))
        if self.network.reach(one, other.id) is other and not one.paused:
            for learner, knower in ((one, other), (other, one)):
                for request in knower.known:
                    if request not in learner.known:
                        self.after(self.pick(*self.network.delay_us), learner, learner.learn, request)
        self.after(GOSSIP_US, None, self._gossip)

    def on_members(self, machine: Machine, members: Members) -> None:
        """`machine` applied a block that changes the list: whose key it replaces starts again with the new one."""
        self.note(machine, "the list is now " + ", ".join(validator.id for validator in members))
        index = members.index(machine.id)
        if index is None:
            return
        version = machine.key_version
        if members.key(index) == self.signer.validator(machine.member, version + 1).voting_key:
            machine.key_version += 1
            self.checks.reached["started with a rotated key"] += 1
            self.after(self.pick(0, 500_000), machine, self._restart, machine)

    def _restart(self, machine: Machine) -> None:
        machine.crash()
        machine.start()

    # --- progress after healing --------------------------------------------------------------------------

    @property
    def bound_ms(self) -> int:
        """How long healing may take at most, in virtual ms, from the lossless network on.

        What was lost is said again after the longest back-off of resends (8 status intervals) and of catch-up
        (8 s). Then views: one that is under way when all can hear each other again, one for each of f faulty
        primaries, one that honest members enter at different times; each of them costs at most two capped
        time-outs (for the silence, for the new view). Then each height up to the target, and each block that the
        requests accepted before need, and those that f censors may pass them over in: a faulty primary may use
        up its time-out, and executing, writing and catching up take less than a second.
        """
        plan = self.plan
        heal_ms = 8 * plan.status_interval_ms + 8_000
        f = (plan.n + plan.spares - 1) // 3
        views_ms = 2 * plan.timeout_cap_ms * (f + 2)
        heights = HEIGHTS_AFTER_HEALING + self._backlog_blocks + f * (PASSED_OVER_MAX + 1)
        return heal_ms + views_ms + heights * (plan.base_timeout_ms + 1_000)

    def on_healed(self) -> None:
        """From now on nothing fails: every honest member must reach the target within the bound."""
        self._healed_us = max(1, self.now_us)
        self.poison.clear()
        self._target = max(machine.disk.height for machine in self.machines) + HEIGHTS_AFTER_HEALING
        self._owed = tuple(self.accepted)
        waiting = max(len(machine.known) for machine in self.machines)
        self._backlog_blocks = -(-waiting // REQUESTS_MAX)
        self.note(None, f"healed; everybody must reach height {self._target} within {self.bound_ms} ms")
        self.after(self.bound_ms * 1000, None, self._judge_progress)
        self._look_for_the_end()

    def on_height(self, machine: Machine) -> None:
        """`machine` applied a block."""
        self.note(machine, f"applied height {machine.disk.height} {machine.disk.head_digest.hex()[:8]}")

    def _look_for_the_end(self) -> None:
        if all(self._recovered(machine) for machine in self.machines):
            self._recovered_us = self.now_us
            self.checks.rules["progress after healing"] += 1
            self.checks.rules["no accepted request is lost"] += len(self._owed)
        else:
            self.after(50_000, None, self._look_for_the_end)

    def _recovered(self, machine: Machine) -> bool:
        """Whether an honest node has reached the target with all that was promised, and votes if it has a vote."""
        if not machine.honest:
            return True
        if machine.disk.height < self._target or not machine.up:
            return False
        applied = machine.disk.applied_requests
        if not all(request in applied for request in self._owed):
            return False
        listed = machine.disk.members(self.members).index(machine.id) is not None
        return not listed or not machine.replica.status().abstaining

    def _judge_progress(self) -> None:
        lacking = [
            f"{machine.name} at {machine.disk.height} of {self._target}, "
            f"lacks {[request for request in self._owed if request not in machine.disk.applied_requests][:5]}: "
            f"{machine.replica.status()}"
            for machine in self.machines
            if not self._recovered(machine)
        ]
        self.checks.require("progress after healing", not lacking, "; ".join(lacking))

    # --- the trace ---------------------------------------------------------------------------------------

    def note(self, machine: Machine | None, text: str) -> None:
        """One line of the trace."""
        if self._trace is not None:
            who = machine.name if machine is not None else "--"
            self._trace(f"{self.steps:6d} {self.now_us / 1000:11.3f} ms {who:4s} {text}")

    def tell_input(self, machine: Machine, input_: Input) -> None:
        """Trace an input, unless it is a tick."""
        if self._trace is not None and not isinstance(input_, Tick):
            text = (
                f"<- {input_.peer}: {brief(input_.message)}"
                if isinstance(input_, Received)
                else f"<- {brief(input_)}"
            )
            self.note(machine, text)

    def tell_effect(self, machine: Machine, effect: Effect) -> None:
        """Trace an effect as it is performed."""
        if self._trace is not None:
            self.note(machine, f"-> {brief(effect)}")

    def on_accused(self, machine: Machine, effect: Accuse) -> None:
        """Evidence must name a member that is not honest; an honest one can never be accused."""
        holder = next(other for other in self.machines if other.id == effect.member)
        self.checks.require("no honest member is accused", not holder.honest, machine.name, "accuses", holder.name)
        if not isinstance(effect.evidence, TwoInstances):
            self.checks.reached["equivocation proved"] += 1
        elif holder.faulty not in ROLES:  # a liar may sign what no process of it has seen
            key = self.signer.validator(holder.member, holder.key_version).voting_key
            self._instances.judge(self.checks, machine.name, effect.evidence, key, self.signer)

    def on_stopped(self, machine: Machine) -> None:
        """A process signs nothing any more: its key lives in two places, as that of an honest member never does."""
        self.checks.require("who lives once never stops for good", not machine.honest, machine.name)
        self.checks.reached["a doubled key stops for good"] += machine.faulty == "twin"


def brief(value: object) -> str:
    """A value on one line: digests and signatures cut to eight hex digits."""
    if isinstance(value, bytes):
        return value.hex()[:8]
    if isinstance(value, tuple | list):
        return "(" + ", ".join(brief(item) for item in value) + ")"
    fields = getattr(value, "__struct_fields__", None)
    if fields is None:
        return repr(value) if not hasattr(value, "name") else str(getattr(value, "name"))  # noqa: B009
    shown = [f"{name}={brief(getattr(value, name))}" for name in fields if name not in UNSHOWN]
    return f"{type(value).__name__}({', '.join(shown)})"
