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


def readiness(
    ledger: GovernedLedger,
    bank: str,
    pool: list[Transaction],
    tls_keys: frozenset[bytes] = frozenset(),
    claims_2: bytes | None = None,
) -> Readiness:
    """The part of the bank's node that says it; what it says comes into `pool`."""

    async def submit(data: Sequence[bytes]) -> list[Submission | HansaError]:
        pool.extend(Transaction.decode(item) for item in data)
        return [Submission("") for _ in data]

    keys = VotingKeys(bank, VOTING[bank].public, VOTING[bank].sign, {}, ledger.store.head.members)
    clock = cast(Clock, cast(Any, LedgersTime(ledger)))
    return Readiness(
        ledger.network.network_id,
        bank,
        keys,
        tls_keys,
        clock,
        submit,
        lambda own: True,
        lambda *version: claims_2 if version == ("claims", 2) else None,
    )


@pytest.mark.parametrize(("ready_blocks", "block_ms"), [(100, 1_000), (20, 100), (100, 20)])
async def test_nodes_that_run_are_ready_at_the_same_time(tmp_path: Path, ready_blocks: int, block_ms: int) -> None:
    """On a quick chain one's word had grown old whenever the other spoke, ten seconds after it had spoken last."""
    ledger = governed(tmp_path / "data", ready_blocks)
    pool: list[Transaction] = []

    def node(bank: str) -> Readiness:
        return readiness(ledger, bank, pool)

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


@pytest.mark.parametrize("proposals", [1, 4])
async def test_while_a_change_waits_on_a_quiet_ledger_the_nodes_words_do_not_keep_it_busy(
    tmp_path: Path, proposals: int
) -> None:
    """Each made a block, with which those of the others grew older, and were said anew: hundreds a minute."""
    ledger = governed(tmp_path / "data", 20)
    for number in range(2, proposals + 1):
        change: dict[str, Any] = {"kind": "suspend_member", "member": "bank-d", "expires_at_ms": ledger.end()}
        ledger.agree(
            ledger.say("bank-a", "propose", **change),
            ledger.say("bank-b", "vote", proposal=number, yes=True),
            ledger.say("bank-c", "vote", proposal=number, yes=True),
        )
    pool: list[Transaction] = []
    # Two would be enough: one alone waits for the others, which are down.
    node = readiness(ledger, "bank-a", pool)
    height, end_ms = ledger.store.head.height, ledger.now_ms + 60_000
    while ledger.now_ms < end_ms:
        ledger.now_ms += 200
        await node.look(ledger.store.snapshot())
        waiting = [item for item in pool if ledger.executor.obstacle(item, ledger.now_ms) is None]
        pool.clear()
        if waiting:
            ledger.settle(*waiting)
    made = ledger.store.head.height - height
    ledger.store.close()
    assert made <= 2


async def test_a_new_key_for_links_is_spoken_for_by_its_own_node_alone_and_only_with_the_key_at_hand(
    tmp_path: Path,
) -> None:
    ledger = governed(tmp_path / "data", 20)
    new = bytes(31) + b"t"
    change: dict[str, Any] = {
        "kind": "rotate_tls_key",
        "member": "bank-b",
        "tls_key": new,
        "expires_at_ms": ledger.end(),
    }
    ledger.agree(
        ledger.say("bank-b", "propose", **change),
        ledger.say("bank-a", "vote", proposal=2, yes=True),
        ledger.say("bank-c", "vote", proposal=2, yes=True),
    )

    async def spoken_for(bank: str, *tls_keys: bytes) -> list[int]:
        pool: list[Transaction] = []
        await readiness(ledger, bank, pool, frozenset(tls_keys)).look(ledger.store.snapshot())
        return [call.args["proposal"] for item in pool for call in item.body.calls]

    assert await spoken_for("bank-a", new) == [1]
    assert await spoken_for("bank-b") == [1]
    assert await spoken_for("bank-b", new) == [1, 2]
    ledger.store.close()


async def test_a_version_is_spoken_for_only_with_exactly_its_bytes_at_hand(tmp_path: Path) -> None:
    ledger = governed(tmp_path / "data", 20)
    change: dict[str, Any] = {
        "contract": "claims",
        "source": bytes(31) + b"s",
        "at_height": ledger.store.head.height + 50,
        "expires_at_ms": ledger.end(),
    }

    async def spoken_for(claims_2: bytes | None) -> list[int]:
        pool: list[Transaction] = []
        await readiness(ledger, "bank-a", pool, claims_2=claims_2).look(ledger.store.snapshot())
        return [call.args["proposal"] for item in pool for call in item.body.calls]

    def decided(number: int, kind: str, version: int) -> None:
        ledger.agree(
            ledger.say("bank-a", "propose_contract", kind=kind, version=version, **change),
            ledger.say("bank-b", "vote", proposal=number, yes=True),
            ledger.say("bank-c", "vote", proposal=number, yes=True),
        )

    decided(2, "upgrade_contract", 2)
    assert await spoken_for(None) == [1]
    assert await spoken_for(bytes(31) + b"o") == [1]
    assert await spoken_for(bytes(31) + b"s") == [1, 2]
    # To stop a contract nothing is needed; that decision takes the place of the one before.
    decided(3, "deactivate_contract", 1)
    assert await spoken_for(None) == [1, 3]
    ledger.store.close()
