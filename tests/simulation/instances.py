"""Which instance each simulated process draws at its start, and who really ran it: the truth behind rule 9.8."""

import random

from consensus.messages import INSTANCE_SIZE, Presence, TwoInstances, presence_bytes
from tests.simulation.checks import NETWORK, Checks
from tests.simulation.signing import Signer

DRAWN = "drawn"
CLONED = "cloned"
NONE = "none"
OF_SEEDS = (DRAWN, CLONED, DRAWN, NONE)
"""What the seeds have by turns. Without any a doubled key is not noticed by 9.8, and stays dangerous for longer."""


class Instances:
    """Draws from its own stream, so that no other fault of a seed depends on it.

    `kind` is one of `DRAWN` (every start of a process draws), `CLONED` (so too, but the two processes of a doubled
    key begin as copies of one that ran, with its instance) and `NONE` (no process has one).
    """

    def __init__(self, seed: int, kind: str) -> None:
        self._kind = kind
        self._random = random.Random(f"instances of seed {seed}")
        self._cloned: dict[int, bytes] = {}
        self._ran: dict[bytes, dict[str, None]] = {}  # instance -> the names of the machines that had it

    def at_start(self, machine: str, member: int, *, first_of_twin: bool) -> bytes:
        """The instance of the process that starts on `machine`; empty where it has none."""
        if self._kind == NONE:
            return b""
        instance = self._random.randbytes(INSTANCE_SIZE)
        if self._kind == CLONED and first_of_twin:
            instance = self._cloned.setdefault(member, instance)
        self._ran.setdefault(instance, {})[machine] = None
        return instance

    def in_two_places(self, instance: bytes) -> bool:
        """Whether two machines have had it."""
        return len(self._ran.get(instance, ())) > 1

    def judge(self, checks: Checks, who: str, evidence: TwoInstances, key: bytes, signer: Signer) -> None:
        """Require that `evidence` is what it says, and that two machines did run with this one `key`."""
        one, other = evidence.first, evidence.second
        crossed = (one.met, other.met) == (other.instance, one.instance) and one.instance != other.instance
        signed = all(_signed(word, key, signer) for word in (one, other))
        checks.require("a proof of two processes is genuine", crossed and signed, who, evidence)
        machines = {**self._ran.get(one.instance, {}), **self._ran.get(other.instance, {})}
        checks.require("two processes are proved where two ran", len(machines) > 1, who, *machines)
        checks.reached["one key twice proved"] += 1


def _signed(word: Presence, key: bytes, signer: Signer) -> bool:
    return signer.verify(key, presence_bytes(NETWORK, word), word.signature)
