"""Twins: one key in two places, and every schedule of leaders and partitions of a given length.

After Bano et al., "Twins: BFT Systems Made Robust" (2020). Two processes with one key are as dangerous as a member
that equivocates in any way that the shipped code can: each of the two is correct, together they are not. A schedule
says for each round who is the leader of that view, how the five processes are divided, and who gets the commits.
Rounds end by time, a little later than the time-out, so that every division also meets a change of view.
"""

import argparse
import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

from consensus.members import Members
from consensus.messages import Message, Vote, VoteKind
from consensus.replica import Replica
from tests.simulation.byzantine.traitor import shameless
from tests.simulation.machine import Machine, ReplicaFactory
from tests.simulation.runner import replay_line, report_lines, run_seeds
from tests.simulation.stage import Stage
from tests.simulation.world import Outcome

ROUND_US = 800_000
START_US = 300_000
REQUEST_US = 190_000
TWIN = 0
ALL = 0  # every commit passes that the division lets pass
NONE = 1  # no commit arrives anywhere
HONEST = (2, 3, 4)  # the places of m1, m2 and m3 among the five processes; as a fate: only this one gets commits
SHOWN_MAX = 20
FATES = (ALL, NONE, *HONEST)


class Round(NamedTuple):
    """`leader` is a member, 0 for the twins; `side` says by bits which processes are apart from the first twin."""

    leader: int
    side: int
    commits: int


Schedule = tuple[Round, ...]
ROUNDS = tuple(Round(leader, side << 1, commits) for leader in range(4) for side in range(16) for commits in FATES)


def schedules(rounds: int) -> Iterator[Schedule]:
    """Every schedule of so many rounds, one for all that differ only in the names of the honest or of the twins."""
    for schedule in itertools.product(ROUNDS, repeat=rounds):
        if all(schedule <= other for other in _alike(schedule)):
            yield schedule


@functools.cache
def all_schedules(rounds: int) -> tuple[Schedule, ...]:
    """Every schedule of so many rounds, numbered by its place."""
    return tuple(schedules(rounds))


def play(rounds: int, number: int) -> Outcome:
    """The outcome of the schedule with this number."""
    return TwinsWorld(all_schedules(rounds)[number], number).run()


def drawn(seed: int, rounds: int) -> Schedule:
    """One schedule out of all, drawn from `seed`."""
    choose = random.Random(seed).choice
    return tuple(choose(ROUNDS) for _ in range(rounds))


def _alike(schedule: Schedule) -> Iterator[Schedule]:
    for names in itertools.permutations(HONEST):
        for twins in ((0, 1), (1, 0)):
            place = (*twins, *names)
            yield tuple(_renamed(one, place) for one in schedule)


def _renamed(one: Round, place: tuple[int, ...]) -> Round:
    leader = one.leader if one.leader == TWIN else place[one.leader + 1] - 1
    side = sum(1 << place[process] for process in range(5) if one.side >> process & 1)
    if side & 1:  # the side of the first twin is the one without bits
        side = 31 - side
    return Round(leader, side, one.commits if one.commits in (ALL, NONE) else place[one.commits])


class Led(Members):
    """A member list whose leaders are given for the first views; later ones take turns."""

    __slots__ = ("leaders",)

    leaders: tuple[int, ...]

    def primary(self, height: int, view: int, rotation_heights: int, resting: tuple[int, ...] = ()) -> int:
        """The leader of `view`, at every height."""
        return self.leaders[view] if view < len(self.leaders) else view % self.n


class TwinsWorld(Stage):
    """Plays one schedule, then heals: agreement is judged at every step, progress of the honest at the end."""

    faulty: ClassVar[dict[int, str]] = {TWIN: "twin"}
    timeout_cap_ms: ClassVar[int] = 500
    request_every_us: ClassVar[int] = 250_000

    def __init__(
        self,
        schedule: Schedule,
        seed: int = 0,
        *,
        factory: ReplicaFactory = Replica,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`seed` draws delays of a few milliseconds and the clients' requests."""
        self.schedule = schedule
        super().__init__(seed, factory=factory, trace=trace)
        led = Led(self.members.validators)
        led.leaders = tuple(one.leader for one in schedule)
        self.members = led
        self._place = {machine.name: place for place, machine in enumerate(self.machines)}

    @property
    def faults_end_ms(self) -> int:  # type: ignore[override]  # a constant of other scenes, here by the schedule
        """When the last round is over."""
        return (START_US + ROUND_US * len(self.schedule)) // 1000

    def _people(self, factory: ReplicaFactory) -> list[Machine]:
        """The two go on when they are shown what the other has signed: else the first sight ends the danger."""
        machines = super()._people(factory)
        for machine in machines:
            if machine.faulty == "twin":
                machine.factory = shameless(factory)
        return machines

    def begins(self) -> None:
        """Each round begins with new links between those that now can reach each other."""
        self.faults["twin"] += 1
        for index in range(len(self.schedule)):
            self.after(START_US + ROUND_US * index, None, self._relink)

    def _request(self) -> None:
        """Clients send to everybody: each side always has something to decide."""
        if self.healed:
            super()._request()
            return
        number = self.issue()
        for machine in self.machines:
            self.after(self.pick(1_000, 10_000), None, machine.learn, number)
        self.after(REQUEST_US, None, self._request)

    def _relink(self) -> None:
        for one, other in itertools.combinations(self.machines, 2):
            if one.member != other.member and self.linked(one, other):
                self.network.mend(one, other, reconnect=True)

    def _round(self) -> Round | None:
        index = (self.now_us - START_US) // ROUND_US
        return self.schedule[index] if 0 <= index < len(self.schedule) else None

    def linked(self, one: Machine, other: Machine) -> bool:
        """Whether both are on one side now."""
        now = self._round()
        if now is None:
            return True
        return (now.side >> self._place[one.name] & 1) == (now.side >> self._place[other.name] & 1)

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """As the links, and commits as the round wants it."""
        now = self._round()
        if now is None:
            return True
        if isinstance(message, Vote) and message.kind is VoteKind.COMMIT and now.commits != ALL:
            return now.commits == self._place[receiver.name] and self.linked(sender, receiver)
        return self.linked(sender, receiver)

    def on_healed(self) -> None:
        """One more height shows that the honest three go on."""
        super().on_healed()
        self._target = max(machine.disk.height for machine in self.machines) + 1


class TwoTwins(TwinsWorld):
    """The control: two keys doubled among four members are one too many."""

    faulty: ClassVar[dict[int, str]] = {TWIN: "twin", 1: "twin"}


def main(arguments: list[str]) -> int:
    """Play every schedule, or one of them with its trace; 0 when every rule held."""
    parser = argparse.ArgumentParser(prog="scripts/simulate --twins")
    parser.add_argument("--twins", type=int, nargs="?", const=-1, help="play this schedule only, with its trace")
    parser.add_argument("--rounds", type=int, default=2, help="how long a schedule is (1 or 2)")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    options = parser.parse_args(arguments)
    if options.twins >= 0:
        schedule = all_schedules(options.rounds)[options.twins]
        print(f"schedule {options.twins}: {schedule}")
        outcome = TwinsWorld(schedule, options.twins, trace=print).run()
        return 1 if outcome.failure is not None else 0
    count = len(all_schedules(options.rounds))  # made before the processes fork: they share it
    report = run_seeds(0, count, options.jobs, run=functools.partial(play, options.rounds))
    # Two rounds with one key in two places reach some of the protocol only: which rules, the sweep over seeds says.
    report = report._replace(numbers=Counter())
    lines = report_lines(report)[len(report.failed) :]
    lines += [replay_line(failure).replace("--seed", "--twins") for failure in report.failed[:SHOWN_MAX]]
    print("\n".join(lines).replace(" seeds,", " schedules,"))
    return 1 if report.failed else 0
