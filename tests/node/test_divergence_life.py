"""A divergence that ends while it is looked into leaves nothing behind, and the next one is found as the first was.

A contract that is not the same from run to run may come to the certified roots at the second try: then this node
votes again, and has to notice when it differs once more.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

from node.errors import InvalidBlock
from node.runtime.clock import Clock
from node.runtime.divergence import NOTHING_TO_COMPARE, Divergence
from node.store import DivergenceRecord
from node.wire import Execution


class Disk:
    """The store's one record; writes happen at once."""

    def __init__(self) -> None:
        self.record: DivergenceRecord | None = None

    def divergence(self) -> DivergenceRecord | None:
        return self.record

    def put_divergence(self, record: DivergenceRecord) -> None:
        self.record = record

    async def write(self, function: Any, *args: Any) -> None:
        function(*args)


class Peer:
    """bank-a, which answers when `gate` opens."""

    connected: tuple[str, ...] = ("bank-a",)

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.without_values: tuple[str, ...] = ()

    async def request(self, peer: str, *question: object) -> Execution:
        await self.gate.wait()
        return Execution(0, 1, 1, peer not in self.without_values, ((b"", b"receipt"),))


class Scene:
    """A divergence of a node whose head the test moves."""

    def __init__(self) -> None:
        self.disk, self.peer = Disk(), Peer()
        self.failures: list[BaseException] = []
        self.chain: Any = SimpleNamespace(head=SimpleNamespace(height=4), compare=self._compare)
        self.divergence = self.started()

    def started(self) -> Divergence:
        disk: Any = self.disk
        peer: Any = self.peer
        return Divergence(disk, disk, peer, Clock(), lambda: None, self.failures.append)

    def find(self, height: int, reason: str = "") -> None:
        block: Any = SimpleNamespace(
            body=SimpleNamespace(header=SimpleNamespace(height=height)),
            certificate=SimpleNamespace(digest=bytes(32)),
        )
        self.divergence.found(block, InvalidBlock("state_differs", reason), self.chain)

    async def _compare(self, *given: object) -> object:
        return NOTHING_TO_COMPARE


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_answer_that_comes_after_the_block_was_applied_takes_no_vote() -> None:
    scene = Scene()
    scene.find(5)
    await settle()
    assert scene.divergence.height == 5
    scene.chain.head = SimpleNamespace(height=5)
    scene.divergence.on_applied(5)
    scene.peer.gate.set()
    await settle()
    assert scene.divergence.height == 0
    await scene.divergence.close()
    assert scene.failures == []


async def test_a_second_divergence_is_found_after_the_first_has_gone() -> None:
    scene = Scene()
    scene.peer.gate.set()
    scene.find(5)
    await settle()
    scene.chain.head = SimpleNamespace(height=5)
    scene.divergence.on_applied(5)
    scene.find(6)
    await settle()
    assert scene.divergence.height == 6
    assert scene.disk.record is not None
    assert (scene.disk.record.height, scene.disk.record.compared_with) == (6, "bank-a")
    await scene.divergence.close()


async def test_what_another_release_found_is_not_told_of_this_one() -> None:
    scene = Scene()
    scene.peer.gate.set()
    scene.find(5, "ab here, cd in the header")
    await settle()
    scene.divergence = scene.started()
    scene.peer.gate.clear()
    scene.find(5, "ef here, cd in the header")
    await settle()
    assert "ef here" not in scene.divergence.sentence
    assert "being fetched" in scene.divergence.sentence
    scene.peer.gate.set()
    await settle()
    assert "ef here" in scene.divergence.sentence
    await scene.divergence.close()


async def test_whoever_keeps_no_values_does_not_have_the_last_word() -> None:
    for without, proven_by in ((("bank-a",), "bank-b"), (("bank-a", "bank-b"), "bank-a")):
        scene = Scene()
        scene.peer.connected, scene.peer.without_values = ("bank-a", "bank-b"), without
        scene.peer.gate.set()
        scene.find(5)
        await settle()
        assert scene.disk.record is not None
        assert scene.disk.record.compared_with == proven_by
        await scene.divergence.close()
