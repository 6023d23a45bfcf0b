"""What goes wrong in a rehearsal, when and for how long: drawn from one seed, so that it can be drawn again.

A schedule is one to four faults that overlap as they like. Often more than f members are gone at once: then no
block may come, and after the heal blocks must come again. At most f members lose their memory in one schedule.
"""

import random
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal[
    "kill", "power cut", "pause", "wipe", "cut", "hole", "half-open", "flap", "isolate", "slow"
]

FIRST_AT_S = 1.0
SPREAD_S = 5.0
FAULTS_MAX = 4
BRIEF_FAULTS_MAX = 2
PAUSE_S_MAX = 60.0

_KINDS: tuple[tuple[Kind, int], ...] = (
    ("kill", 4),
    ("pause", 4),
    ("wipe", 2),
    ("power cut", 1),
    ("cut", 2),
    ("hole", 2),
    ("half-open", 2),
    ("flap", 1),
    ("isolate", 2),
    ("slow", 1),
)
_OF_PROCESSES: frozenset[Kind] = frozenset({"kill", "power cut", "pause", "wipe"})


class Fault(msgspec.Struct, frozen=True):
    """One thing that goes wrong, `at_s` after the start, for `lasts_s`.

    kill (SIGKILL, started again afterwards), power cut (every member killed), pause (SIGSTOP), wipe (killed, its
    data deleted): of `member`. cut (reset), hole (nothing arrives, nobody is told), flap (cut and whole in
    turns): of the link between `member` and `peer`; half-open: a hole for what `member` sends `peer` alone.
    isolate: a hole on all links of `member`; slow: all that it sends arrives `delay_ms` later.
    """

    kind: Kind
    at_s: float
    lasts_s: float
    member: str = ""
    peer: str = ""
    delay_ms: int = 0

    def __str__(self) -> str:
        where = self.member + (f"~{self.peer}" if self.peer else "")
        by = f" {self.delay_ms} ms" if self.delay_ms else ""
        return f"{self.kind}{by} {where} {self.at_s:g}+{self.lasts_s:g}s".replace("  ", " ")


class Schedule(msgspec.Struct, frozen=True):
    """The faults of one seed, in the order of their starts."""

    seed: int
    faults: tuple[Fault, ...]


def draw(seed: int, members: Sequence[str], *, brief: bool = False) -> Schedule:
    """The schedule of that seed for these members. `brief`: at most two faults, none longer than some seconds."""
    chance = random.Random(seed)
    tolerated = (len(members) - 1) // 3
    faults: list[Fault] = []
    free = list(members)
    wiped = 0
    for number in range(chance.randint(1, BRIEF_FAULTS_MAX if brief else FAULTS_MAX)):
        kind = chance.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])[0]
        if kind in _OF_PROCESSES and (not free or (kind == "wipe" and wiped >= tolerated)):
            kind = "hole"
        if kind == "power cut" and len(free) < len(members):
            kind = "kill"
        at_s = FIRST_AT_S + (0.0 if number == 0 else chance.uniform(0.0, SPREAD_S))
        lasts_s = _duration(chance, kind, brief)
        member = chance.choice(free if kind in _OF_PROCESSES else list(members))
        fault = Fault(kind, round(at_s, 1), round(lasts_s, 1), member)
        if kind == "power cut":
            free = []
            fault = msgspec.structs.replace(fault, member="")
        elif kind in _OF_PROCESSES:
            free.remove(member)
            wiped += kind == "wipe"
        elif kind == "slow":
            fault = msgspec.structs.replace(fault, delay_ms=chance.choice((20, 50, 200, 500)))
        elif kind != "isolate":
            peer = chance.choice([other for other in members if other != member])
            fault = msgspec.structs.replace(fault, peer=peer)
        faults.append(fault)
    return Schedule(seed, tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _duration(chance: random.Random, kind: Kind, brief: bool) -> float:
    """Mostly some seconds; a pause of a whole minute now and then."""
    if brief:
        return chance.uniform(0.5, 4.0)
    if kind == "pause":
        bounds = chance.choices([(1.0, 8.0), (8.0, 20.0), (20.0, PAUSE_S_MAX)], [7, 2, 1])[0]
        return chance.uniform(*bounds)
    return chance.uniform(0.5, 10.0)
