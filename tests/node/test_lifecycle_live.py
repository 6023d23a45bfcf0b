"""Members upgrade, stop and activate a contract by commands, on four nodes of one process; one has other bytes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts import CONTRACTS
from contracts.loader import load_source
from contracts.sdk import Contract
from node.config import NodeConfig
from node.runtime.node import Node
from node.runtime.surroundings import this_machine
from tests.node.live_network import MEMBERS, drifting
from tests.node.test_governing_live import PASSPHRASE, GovernedNetwork, printed

pytestmark = pytest.mark.slow

SECOND = """
from contracts.sdk import Context, Contract, Map, call, query

class Drifting(Contract):
    version = 2
    counts: Map[str, int] = Map()

    @call
    def add(self, ctx: Context, name: str, amount: int) -> None:
        self.counts[name] = (self.counts.get(name) or 0) + 100

    @query
    def count(self, name: str) -> int:
        return self.counts.get(name) or 0
"""


def second(member: str) -> type[Contract]:
    """Version 2 of `drifting` as the member has it. A process has one module of a name: another source has
    another.
    """
    name, source = "tests_drifting_2", SECOND
    if member == "bank-d":
        name, source = f"{name}_other", SECOND + "\n# other bytes\n"
    contract: type[Contract] = load_source(name, source).Drifting
    return contract


class UpgradingNetwork(GovernedNetwork):
    """Every node ships version 2; bank-d's has other bytes."""

    def _make(self, config: NodeConfig, contract: type[Contract] | None) -> Node:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("node.runtime.node.CONTRACTS", (*CONTRACTS, contract or drifting()))
            patch.setattr("node.runtime.node.FURTHER", (second(config.member),))
            node = Node(config, self.network, this_machine(config, self.network, *self._keys(config.member)))
        self.nodes[config.member] = node
        return node

    async def decided(self, number: int, kind: str) -> None:
        """bank-a proposes it, two more vote for it, and it has taken effect at all nodes."""
        # Who runs is the reports' to say, and on a loaded machine they come late.
        assert await self.act("bank-a", "propose", kind, "drifting", "--anyway") == 0
        # The other members' own nodes are asked of it next.
        await self.until(lambda: all(self.height(member) >= self.height("bank-a") for member in MEMBERS[1:3]))
        for member in MEMBERS[1:3]:
            assert await self.act(member, "vote", f"{number}", "yes", "--anyway") == 0

    def active(self, member: str) -> tuple[int, bool]:
        """The contract's version at the node's head, and whether it runs."""
        executor = self.nodes[member]._executor
        row = next(row for row in executor._code.rows if row.contract == "drifting")
        return row.version, row.active


@pytest_asyncio.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[UpgradingNetwork]:
    monkeypatch.setenv("HANSA_PASSPHRASE", PASSPHRASE)
    network = UpgradingNetwork(tmp_path)
    await network.start_all()
    yield network
    await network.stop()


async def test_a_contract_is_upgraded_stopped_and_activated_by_commands(
    live: UpgradingNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    async with live.client("bank-a") as client:
        assert (await client.submit_and_wait(live.add("a", 1))).ok
        for kind, contract in (
            ("upgrade_contract", "nothing"),
            ("upgrade_contract", "settlement"),
        ):
            assert await live.act("bank-a", "propose", kind, contract) == 2
        for kind, code in (("activate_contract", "contract_active"), ("deactivate_contract", "core_contract")):
            contract = "membership" if code == "core_contract" else "drifting"
            capsys.readouterr()
            assert await live.act("bank-a", "propose", kind, contract, "--anyway") == 1
            assert code in capsys.readouterr().err
        # Tried at the node first: a refusal that is shown and not sent, and a warning.
        tried = ("--dry-run", "--anyway")
        assert await live.act("bank-a", "propose", "deactivate_contract", "governance", *tried) == 1
        assert "core_contract" in capsys.readouterr().err
        assert await live.act("bank-a", "propose", "deactivate_contract", "settlement", *tried) == 0
        assert "claims uses settlement" in capsys.readouterr().err
        late = ("--at-height", "1", "--anyway")
        assert await live.act("bank-a", "propose", "upgrade_contract", "drifting", *late) == 1
        assert "height_passed" in capsys.readouterr().err
        await live.decided(1, "upgrade_contract")
        await live.until(lambda: all(live.active(member) == (2, True) for member in MEMBERS))
        # bank-d's bytes are others: it follows, votes no more, and says so.
        await live.until(lambda: live.nodes["bank-d"]._driver.status().abstaining != "")
        assert live.nodes["bank-d"]._code.sentence == "drifting 2 (other bytes here)"
        assert all(not live.nodes[member]._code.differs for member in MEMBERS[:3])
        assert (await client.submit_and_wait(live.add("a", 1))).ok
        assert (await client.query("drifting.count", {"name": "a"})).value == 101
        await live.until(lambda: live.height("bank-d") == live.height("bank-a"))
        await live.decided(2, "deactivate_contract")
        await live.until(lambda: all(live.active(member) == (2, False) for member in MEMBERS))
        # Nothing that is active differs any more.
        await live.until(lambda: not live.nodes["bank-d"]._code.differs)
        refused = await client.contracts()
        [row] = [item for item in refused if item.name == "drifting"]
        assert (row.active, row.calls) == (False, ())
        assert (await client.query("drifting.count", {"name": "a"})).value == 101
        await live.decided(3, "activate_contract")
        await live.until(lambda: all(live.active(member) == (2, True) for member in MEMBERS))
        assert (await client.submit_and_wait(live.add("a", 1))).ok
        assert (await client.query("drifting.count", {"name": "a"})).value == 201
        capsys.readouterr()
        assert await live.run("bank-b", "contracts") == 0
        rows: list[Any] = printed(capsys)["contracts"]
        [shown] = [row for row in rows if row["name"] == "drifting"]
        assert (shown["version"], shown["active"]) == (2, True)
        assert [item["version"] for item in shown["shipped"]] == [1, 2]
