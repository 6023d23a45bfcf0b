"""What `hansa vote` and `hansa proposals` tell of what the ledger made of it."""

from pathlib import Path
from typing import Any, cast

import pytest

from consensus.codec import decode
from node.cli.governing import came_too_late
from node.cli.paging import proposal_view
from node.client import Client, QueryAnswer
from node.client.answers import Fate
from node.client.rendering import outcomes
from node.errors import Unavailable
from node.executor.difference import RECEIPT_SIZE_MAX
from node.ledger import Call, Receipt
from tests.node.ledger_world import HOUR_MS, START_MS, Ledger


def propose(ledger: Ledger, value: int, expires_at_ms: int) -> None:
    args = {"name": "ready_blocks", "value": value, "expires_at_ms": expires_at_ms}
    [receipt] = ledger.settle(ledger.transaction("bank-a", Call("governance", "propose_parameter", args)))
    assert receipt.calls[0].code == "ok"


def voted(ledger: Ledger, proposal: int) -> Fate:
    """The fate that a vote of bank-b would have in the next block, on the present head."""
    sent = ledger.transaction("bank-b", Call("governance", "vote", {"proposal": proposal, "yes": True}))
    executed = ledger.executor.build(ledger.now_ms, "bank-a", [sent])
    assert executed is not None
    [receipt] = [decode(data, Receipt, size_max=RECEIPT_SIZE_MAX) for data in executed.receipts]
    return Fate(sent.tx_id.hex(), "final", executed.height, outcomes(receipt))


def test_a_vote_that_did_nothing_but_end_the_proposal_is_not_called_a_vote(tmp_path: Path) -> None:
    """`hansa vote --json` called it done."""
    ledger = Ledger(tmp_path / "data")
    propose(ledger, 200, START_MS + 3_300)
    propose(ledger, 300, START_MS + HOUR_MS)
    # Over, and not yet tidied up: that comes with the next full second.
    ledger.now_ms = START_MS + 3_500
    fate = voted(ledger, 1)
    assert fate.ok
    assert came_too_late(fate, 1)
    # A vote that counts ends the other proposal all the same.
    counted = voted(ledger, 2)
    assert [event.name for event in counted.receipts[0].events] == ["Moved", "Voted"]
    assert not came_too_late(counted, 2)
    ledger.close()


def test_a_history_is_shown_whole_or_not_at_all() -> None:
    """What a node did not give was left out without a word."""

    class Forgetful:
        def query(self, name: str, args: dict[str, Any]) -> QueryAnswer:
            steps = [{"what": "proposed"}]
            value = {"history": steps, "history_lines": 2} if name == "governance.proposal" else []
            return QueryAnswer(value=value, height=1, state_root="", age_ms=0)

    with pytest.raises(Unavailable, match="1 of the 2 lines"):
        proposal_view(cast(Client, Forgetful()), 1)
