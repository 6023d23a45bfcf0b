"""An image of a replica holds all of it: the replica made from it goes on just the same. It holds no payload."""

import random
from typing import Any

import msgspec
import pytest

from consensus.codec import CodecError, encode, unpack
from consensus.effects import Effect, Input, PayloadBuilt, WorkWaiting
from consensus.image import NOT_KEPT, freeze, stand_in, thaw
from consensus.messages import PrePrepare
from consensus.replica import Replica
from tests.consensus.stage import Stage
from tests.simulation.world import World


class Watched:
    """A replica that is, now and then, compared for a while with one that was made from its image."""

    images = 0

    def __init__(self, chance: random.Random, sign: Any, verify: Any, replica: Replica) -> None:
        self._chance = chance
        self._sign = sign
        self._verify = verify
        self._replica = replica
        self._twin: Replica | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)

    def start(self) -> list[Effect]:
        self._twin = self._made_anew()
        effects = self._replica.start()
        if self._twin is not None:
            assert plain(self._twin.start()) == plain(effects)
        return effects

    def step(self, given: Input) -> list[Effect]:
        if self._chance.random() < 0.02:
            if self._twin is not None:
                assert freeze(self._twin) == freeze(self._replica)
            self._twin = self._made_anew()
        effects = self._replica.step(given)
        if self._twin is not None:
            assert plain(self._twin.step(given)) == plain(effects)
        return effects

    def _made_anew(self) -> Replica | None:
        if "own_vote_unknown" in vars(self._replica._context):
            return None  # a liar: its methods were replaced
        image = freeze(self._replica)
        twin = thaw(image, self._sign, self._verify)
        assert freeze(twin) == image
        assert twin.status() == msgspec.structs.replace(self._replica.status(), abstaining=twin.status().abstaining)
        Watched.images += 1
        return twin


def plain(effects: list[Effect]) -> list[Effect]:
    """The effects without payloads, which an image does not keep."""
    found: list[Effect] = []
    for effect in effects:
        message = getattr(effect, "message", None)
        if isinstance(message, PrePrepare):
            effect = msgspec.structs.replace(effect, message=msgspec.structs.replace(message, payload=b""))
        elif getattr(effect, "payload", None) is not None:
            effect = msgspec.structs.replace(effect, payload=b"")
        found.append(effect)
    return found


def compare(seed: int, until: int) -> None:
    chance = random.Random(seed)

    def make(config: Any, head: Any, memory: Any, sign: Any, verify: Any, *times: int) -> Any:
        return Watched(chance, sign, verify, Replica(config, head, memory, sign, verify, *times))

    outcome = World(seed, factory=make).run(until)
    assert outcome.failure is None, outcome.failure


def test_a_replica_made_from_an_image_goes_on_just_the_same() -> None:
    for seed in (20, 23, 27):
        compare(seed, 2_000)
    assert Watched.images > 20


@pytest.mark.slow
def test_a_replica_made_from_an_image_goes_on_just_the_same_under_many_faults() -> None:
    for seed in range(1_000, 1_010):
        compare(seed, 30_000)


def image() -> bytes:
    """The image of a primary that has proposed a block with a marked payload."""
    stage = Stage()
    stage.give(WorkWaiting(True, 0))
    stage.give(PayloadBuilt(1, 0, b"d" * 32, b"MARKED PAYLOAD"))
    assert stage.replica._work.proposal is not None
    return freeze(stage.replica)


def refuse(message: bytes) -> bytes:
    raise AssertionError("nothing is signed here")


def accept(key: bytes, message: bytes, signature: bytes) -> bool:
    return False


def altered(change: Any) -> bytes:
    """The image with `change` made to its rows."""
    rows: Any = unpack(image(), size_max=1 << 24)
    return encode(change([list(row) if isinstance(row, tuple) else row for row in rows]))


def with_attribute(rows: list[Any], name: str, value: object) -> list[Any]:
    rows[1] += [name, value]
    return rows


def test_a_payload_is_not_in_the_image_but_its_length_is() -> None:
    made = image()
    assert b"MARKED" not in made
    thawed = thaw(made, refuse, accept)
    assert thawed._work.proposal is not None
    assert len(thawed._work.proposal.payload) == len(b"MARKED PAYLOAD")
    assert len(stand_in(4_000_000)) == 4_000_000


def test_the_words_why_nothing_is_signed_are_not_in_the_image() -> None:
    stage = Stage()
    stage.replica._context.withheld = "differs at the key of ACCOUNT-MARKED"
    made = freeze(stage.replica)
    assert b"MARKED" not in made
    assert thaw(made, refuse, accept)._context.withheld == NOT_KEPT


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: ["hansa/image/0", *rows[1:]], "this version can read"),
        (lambda rows: rows[:1], "not that of a replica"),
        (lambda rows: [rows[0], ["Popen", "args", 1]], "malformed"),
        (lambda rows: [rows[0], ["Held", "_messages", ["d"]]], "not that of a replica"),
        (lambda rows: with_attribute(rows, "step", 1), "no attribute"),
        (lambda rows: with_attribute(rows, "__class__", 1), "no attribute"),
        (lambda rows: with_attribute(rows, "x y", 1), "no attribute"),
        (lambda rows: with_attribute(rows, "x", ["o", -1]), "natural"),
        (lambda rows: with_attribute(rows, "x", ["o", 1 << 20]), "malformed"),
        (lambda rows: with_attribute(rows, "x", ["f", "system"]), "malformed"),
        (lambda rows: with_attribute(rows, "x", ["q", 1]), "no kind of value"),
        (lambda rows: with_attribute(rows, "x", ["z", 1 << 40]), "natural"),
        (lambda rows: with_attribute(rows, "x", ["x", "Config", 1]), "malformed"),
        (lambda rows: with_attribute(rows, "x", ["c", "Vote", b"\x90"]), "Expected"),
        (lambda rows: with_attribute(rows, "x", ["d", ["d"], 1]), "malformed"),
    ],
)
def test_what_is_no_image_is_refused(change: Any, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        thaw(altered(change), refuse, accept)


def test_an_image_with_flipped_bytes_is_refused_or_gives_a_replica_and_does_nothing_else() -> None:
    made, chance = image(), random.Random(1)
    for _ in range(400):
        data = bytearray(made)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            assert isinstance(thaw(bytes(data), refuse, accept), Replica)
        except CodecError:
            continue
