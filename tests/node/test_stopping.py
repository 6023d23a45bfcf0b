"""A node that failed ends, whatever else fails while it does."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.node.live_network import LiveNetwork


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[LiveNetwork]:
    network = LiveNetwork(tmp_path)
    yield network
    await network.stop()


async def test_a_node_ends_though_its_last_word_cannot_be_said(
    network: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    await network.start("bank-a")
    node, run = network.nodes.pop("bank-a"), network._runs.pop("bank-a")

    def broken(*given: object) -> None:
        raise RuntimeError("a replica that broke in a step has no status")

    monkeypatch.setattr(node._driver._replica, "step", broken)
    monkeypatch.setattr(node._driver._replica, "status", broken)
    await network.until(run.done)
    assert run.result() == 70
