"""What a node does in the life that crashes interrupt: real blocks, and all that is written beside them.

The undisturbed run makes every block once and remembers what each height must look like; a life replays it write by
write. Nothing here depends on time or on what a crash did.
"""

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from consensus.effects import NewViewRecord, PreparedRecord, Record, ViewChangeRecord, VoteRecord
from consensus.messages import Certificate, Evidence, NewView, ViewChange, Vote, VoteEquivocation, VoteKind
from node.ledger import Call, Ending, HeadRecord, Transaction
from node.state import ExecutedBlock
from node.store import DivergenceRecord
from tests.node.ledger_world import HOUR_MS, Ledger, certificate, transfer

HEIGHTS = 24
ACCOUNTS = ("A", "B", "C", "D")
SIGNATURE = bytes(range(64))


@dataclass(frozen=True)
class Height:
    """What happens at one height, in this order; what is empty does not happen."""

    block: ExecutedBlock
    view: int
    accepted: tuple[Transaction, ...]
    asked: tuple[Record, ...]
    prepare: Record
    commit: tuple[Record, ...]
    evidence: Evidence | None
    diverged: DivergenceRecord | None
    abstain: bool
    endings: dict[bytes, Ending] = field(default_factory=dict)
    forgotten: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Story:
    """All heights from 1 on; the head after each (0: genesis); all rows of state and tree at the end."""

    heights: tuple[Height, ...]
    heads: tuple[HeadRecord, ...]
    last: dict[bytes, bytes]


def tell(place: Path, seed: int) -> Story:
    """The story of `seed`, made by an undisturbed run in the empty directory `place`."""
    chance = random.Random(seed)
    ledger = Ledger(place)
    try:
        heads = [ledger.store.head]
        heights: list[Height] = []
        late: list[Transaction] = []
        for number in range(1, HEIGHTS + 1):
            heights.append(_height(ledger, chance, number, late))
            heads.append(ledger.store.head)
        view = ledger.store.snapshot()
        last = {b"s" + key: value for key, value in view.scan(b"", b"\xff")}
        last |= dict(itertools.chain(ledger.store.rows(b"t", b"u"), ledger.store.rows(b"d", b"e")))
        return Story(tuple(heights), tuple(heads), last)
    finally:
        ledger.close()


def _height(ledger: Ledger, chance: random.Random, number: int, late: list[Transaction]) -> Height:
    """The next block of the undisturbed run. `late` are accepted transactions that no block has taken yet."""
    if number == 1:
        transactions = [_opening(ledger)]
    else:
        size = chance.choice((1, 2, 5, 40))
        transactions = [
            ledger.transaction("bank-a", *_transfers(chance, number, place), request=f"{number}-{place}")
            for place in range(size)
        ]
    stray = ledger.transaction("bank-b", request=f"stray-{number}", expires_at_ms=ledger.now_ms + HOUR_MS)
    block = ledger.build(*transactions)
    assert block is not None
    view = chance.choice((0, 0, 0, 1))
    ledger.store.apply(block, certificate(block), view)
    ledger.executor.advance(block, ledger.store.snapshot())
    digest = block.digest
    prepare = Vote(VoteKind.PREPARE, view, number, digest, 0, SIGNATURE)
    commit = Vote(VoteKind.COMMIT, view, number, digest, 0, SIGNATURE)
    proven = Certificate(VoteKind.PREPARE, view, number, digest, ((0, SIGNATURE), (1, SIGNATURE)))
    asked = ViewChange(number, 1, None, None, 0, SIGNATURE)
    ended, late[:] = (late[0], late[1:]) if late and chance.random() < 0.5 else (None, late)
    late.append(stray)
    rival = Vote(VoteKind.PREPARE, view, number, bytes(32), 2, SIGNATURE)
    return Height(
        block=block,
        view=view,
        accepted=(*chance.sample(transactions, chance.randint(0, len(transactions))), stray),
        asked=(ViewChangeRecord(asked), NewViewRecord(NewView(number, 1, (asked,), 1, SIGNATURE))) if view else (),
        prepare=VoteRecord(prepare, False, None),
        commit=(PreparedRecord(proven), VoteRecord(commit, False, None)),
        evidence=VoteEquivocation(Vote(VoteKind.PREPARE, view, number, digest, 2, SIGNATURE), rival)
        if chance.random() < 0.2
        else None,
        diverged=DivergenceRecord(number, digest, 1, "state_differs", "told") if chance.random() < 0.1 else None,
        abstain=chance.random() < 0.1,
        endings={ended.tx_id: Ending("expired", "expired", number)} if ended is not None else {},
        forgotten=tuple(block.tx_ids[:1]) if chance.random() < 0.3 else (),
    )


def _opening(ledger: Ledger) -> Transaction:
    calls = []
    for account in ACCOUNTS:
        calls.append(ledger.opening())
        calls[-1].args["account"] = account
    return ledger.transaction("bank-a", *calls)


def _transfers(chance: random.Random, number: int, place: int) -> list[Call]:
    debtor, creditor = chance.sample(ACCOUNTS, 2)
    return [transfer(debtor, creditor, chance.randint(1, 9), 1_000 * number + place)]


def decided(height: Height) -> Certificate:
    """What decided the height."""
    return certificate(height.block)
