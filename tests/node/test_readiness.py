"""A node says that it is ready so that those who run are ready at the same time, whenever each of them began."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from contracts.governance import Governance
from node.client.answers import Submission
from node.config import PrincipalConfig
from node.errors import HansaError
from node.ledger import Transaction
from node.runtime.clock import Clock
from node.runtime.readiness import Readiness
from node.runtime.voting_keys import VotingKeys
from node.state import Overlay
from tests.node.evidence_world import VOTING, provable_network
from tests.node.ledger_world import BANKS, transfer
from tests.verifier.test_governed_chain import ROOTS, GovernedLedger

LATER_MS = 5_000


class LedgersTime:
    """The clock of a ledger's next block."""

    def __init__(self, ledger: GovernedLedger) -> None:
        self.ledger = ledger

    def now_ms(self) -> int:
        return self.ledger.now_ms

    def time_ms(self) -> int:
        return self.ledger.now_ms


def governed(path: Path, ready_blocks: int) -> GovernedLedger:
    """A ledger on which the removal of bank-d waits: of the three that would be left two suffice."""
    config = provable_network()
    config = msgspec.structs.replace(
        config,
        principals=tuple(PrincipalConfig(bank, (ROOTS[bank].public,), 1) for bank in BANKS),
        contracts={**config.contracts, "governance": {"validators_min": 3, "ready_blocks": ready_blocks}},
    )
    ledger = GovernedLedger(path, config)
    ledger.open_accounts("ACC-1", "ACC-2", funds=1_000_000)
    ledger.agree(
        ledger.say("bank-a", "propose", kind="remove_member", member="bank-d", expires_at_ms=ledger.end()),
        ledger.say("bank-b", "vote", proposal=1, yes=True),
        ledger.say("bank-c", "vote", proposal=1, yes=True),
    )
    return ledger


def status(ledger: GovernedLedger) -> str:
    found = Governance.proposals.read_from(Overlay(ledger.store.snapshot()), 1)
    assert found is not None
    return found.status


@pytest.mark.parametrize(("ready_blocks", "block_ms"), [(100, 1_000), (10, 100), (100, 20)])
async def test_nodes_that_run_are_ready_at_the_same_time(tmp_path: Path, ready_blocks: int, block_ms: int) -> None:
    """On a quick chain one's word had grown old whenever the other spoke, ten seconds after it had spoken last."""
    ledger = governed(tmp_path / "data", ready_blocks)
    pool: list[Transaction] = []

    async def submit(data: Sequence[bytes]) -> list[Submission | HansaError]:
        pool.extend(Transaction.decode(item) for item in data)
        return [Submission("") for _ in data]

    def node(bank: str) -> Readiness:
        keys = VotingKeys(bank, VOTING[bank].public, VOTING[bank].sign, {}, ledger.store.head.members)
        clock = cast(Clock, cast(Any, LedgersTime(ledger)))
        return Readiness(ledger.network.network_id, bank, keys, clock, submit, lambda own: True)

    started_ms, nodes = ledger.now_ms, [node("bank-a")]
    while status(ledger) == "waiting" and ledger.now_ms - started_ms < 6 * LATER_MS:
        if ledger.now_ms - started_ms >= LATER_MS and len(nodes) == 1:
            nodes.append(node("bank-b"))
        for item in nodes:
            await item.look(ledger.store.snapshot())
        ledger.now_ms += block_ms
        waiting = [item for item in pool if ledger.executor.obstacle(item, ledger.now_ms) is None]
        pool.clear()
        payment = ledger.transaction("bank-a", transfer("ACC-1", "ACC-2", 1, ledger.store.head.height))
        executed = ledger.executor.build(ledger.now_ms, "bank-a", [*waiting, payment])
        assert executed is not None
        ledger.decide(executed)
    assert status(ledger) == "effective"
    ledger.store.close()
