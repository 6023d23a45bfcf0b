"""Running nodes that have applied a recovery, and stand below the block that it goes on from."""

import time
from pathlib import Path

import pytest

from contracts import CONTRACTS
from node.config import dump_network
from node.recovery import RecoveryFile
from node.rescue import Survivor, Terms, apply_recovery
from node.store import Store
from tests.node.live_network import LiveNetwork, drifting

AB, BC = ("bank-a", "bank-b"), ("bank-b", "bank-c")


def recovery_of(live: LiveNetwork, *survivors: str) -> RecoveryFile:
    """A recovery from where the stopped nodes of these members stand, signed by all of them."""
    file: RecoveryFile | None = None
    now_ms = time.time_ns() // 1_000_000
    for member in survivors:
        with Survivor.opened(live.config(member), live.network) as survivor:
            terms = Terms(survivors, "the others are gone", now_ms, accepts_few=True)
            file = survivor.sign(file or survivor.draft(terms), live.voting_key(member), now_ms)
    assert file is not None
    return file


@pytest.mark.slow
async def test_members_below_the_base_of_a_recovery_decide_no_other_block_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node began to work above the base by the former list; now it applies there what the survivors decided."""
    for module in ("survivor", "applying"):
        monkeypatch.setattr(f"node.rescue.{module}.CONTRACTS", (*CONTRACTS, drifting()))
    live = LiveNetwork(tmp_path)
    live.config("bank-a").network_file.write_text(dump_network(live.network))
    await live.start_all()
    async with live.client(*BC) as client:
        assert (await client.submit_and_wait(live.add("even", 1))).ok
        await live.until(lambda: len({live.height(member) for member in live.nodes}) == 1)
        await live.stop("bank-d")
        for amount in range(3):
            assert (await client.submit_and_wait(live.add("even", amount))).ok
        await live.until(lambda: len({live.height(member) for member in live.nodes}) == 1)
        base = live.height("bank-a")
        await live.stop()
        file = recovery_of(live, *AB)
        assert file.base_height == base
        apply_recovery(live.config("bank-d"), _written(tmp_path, file))
        # bank-c stands at the base and knows of no recovery; bank-d fetches from it, and would vote with it.
        await live.start("bank-c")
        await live.start("bank-d")
        await live.until(lambda: live.height("bank-d") > base)
        await live.stop()
    store = Store(live.data_dir("bank-d"), live.network.network_id, live.network.genesis_hash)
    try:
        assert (store.head.height, store.head.digest) == (base + 1, file.digest)
        assert not store.memory().records
    finally:
        store.close()


def _written(directory: Path, file: RecoveryFile) -> Path:
    path = directory / "recovery.json"
    path.write_bytes(file.encode())
    return path
