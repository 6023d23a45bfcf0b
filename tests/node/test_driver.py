"""The driver ends cleanly whenever it is closed."""

import asyncio
import gc
import warnings

from consensus.config import Config
from consensus.effects import (
    Accuse,
    BuildPayload,
    CatchUp,
    CheckPayload,
    Decide,
    Head,
    Input,
    Persist,
    PersistAbstention,
    WorkWaiting,
)
from consensus.messages import Message
from consensus.replica import Replica
from node.runtime.clock import Clock
from node.runtime.driver import Driver
from node.runtime.recorder import Recorder
from tests.consensus.stage import FRESH, GENESIS, NETWORK
from tests.simulation.signing import Signer


class Unanswered:
    """Is asked for everything and answers nothing; there is nobody to send to."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def build(self, effect: BuildPayload) -> Input:
        return await self._waits(effect)

    async def check(self, effect: CheckPayload) -> Input:
        return await self._waits(effect)

    async def decide(self, effect: Decide) -> Input | None:
        return await self._waits(effect)

    def catch_up(self, effect: CatchUp) -> None:
        raise AssertionError(effect)

    async def accuse(self, effect: Accuse) -> None:
        raise AssertionError(effect)

    def send_consensus(self, peer: str, message: Message) -> None:
        raise AssertionError(peer)

    def broadcast_consensus(self, message: Message) -> None:
        """Nobody is connected."""

    async def persist(self, records: list[Persist | PersistAbstention]) -> None:
        """At once."""

    async def _waits(self, effect: object) -> Input:
        self.asked.append(effect)
        await asyncio.Event().wait()
        raise AssertionError(effect)


def alone(answering: Unanswered) -> Driver:
    """The driver of the only member of a network."""
    signer, clock = Signer(1), Clock()
    config = Config(network=NETWORK, member=signer.members.id(0))
    head = Head(0, GENESIS, None, 0, signer.members)
    replica = Replica(config, head, FRESH, signer.sign_as(0), signer.verify, clock.now_ms(), clock.time_ms())

    def failed(error: BaseException) -> None:
        raise error

    return Driver(replica, answering, answering, answering.persist, clock, Recorder(), failed)


async def test_what_was_asked_for_and_had_not_begun_is_not_left_unawaited() -> None:
    begun = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for turns in range(8):
            answering = Unanswered()
            driver = alone(answering)
            driver.start()
            driver.give(WorkWaiting(True, 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            await driver.close()
            begun.append(len(answering.asked))
        gc.collect()
    # Closed before anything was asked for, and after: so in one of these turns between the two.
    assert begun[0] == 0
    assert begun[-1] == 1
    assert [str(warning.message) for warning in warned] == []
