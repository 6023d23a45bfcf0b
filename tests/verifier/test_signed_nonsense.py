"""What a quorum signed is still judged: an account that does not add up, a change of members that is none."""

from collections.abc import Sequence
from typing import Any

import hansa_verify
import pytest

from consensus.codec import encode
from consensus.messages import VoteKind, vote_bytes
from contracts.settlement import Account, Entry, Link
from node.config import dump_network
from node.evidence import StateProof, account_key, state_proof
from node.ledger import Header, sha256
from node.state_tree import StateTree
from tests.node.evidence_world import VOTING, provable_network
from tests.node.ledger_world import BANKS
from tests.verifier.forger import sealed

NETWORK = provable_network(state_tree_bits=4)
KEY = account_key("ACC-1")
VALIDATORS = [(bank, VOTING[bank].public) for bank in BANKS]


def signed_block(height: int, root: bytes, following: Sequence[Sequence[Any]]) -> list[Any]:
    """A block with a real certificate, after whose height the list `following` decides."""
    rows = tuple((name, "validator", key) for name, key in following)
    members, blank = sha256(b"hansa/members" + encode(rows)), bytes(32)
    header = Header(NETWORK.network_id, height, blank, height, "bank-a", blank, blank, root, members, blank)
    vote = vote_bytes(header.network, VoteKind.COMMIT, 0, height, header.digest)
    return [header, (0, [(place, VOTING[bank].sign(vote)) for place, bank in enumerate(BANKS[:3])])]


def block_with(height: int, account: Account) -> tuple[list[Any], StateProof]:
    """A block whose state is this account alone, and the account's proof."""
    records: dict[str, bytes | None] = {}
    tree = StateTree(4, records.get)
    value = encode(account)
    staged = tree.stage({KEY: value})
    records.update(staged.buckets)
    tree.commit(staged)
    return signed_block(height, tree.root, VALIDATORS), state_proof(tree, KEY, value)


def statement(entries: list[Entry], balance: int) -> hansa_verify.Proof:
    """The verdict on the account's entries between blocks 5 and 9; chain and count are those of the entries."""
    chain = b""
    for entry in entries:
        chain = sha256(encode(Link(chain, entry)))
    opening = Account("bank-a", "USD", 0, 0, 0, b"", (), True)
    closing = Account("bank-a", "USD", balance, 0, len(entries), chain, (), True)
    first, second = block_with(5, opening), block_with(9, closing)
    item = (first[1], second[1], [encode(entry) for entry in entries])
    pack = sealed(["hansa/evidence", 1, "statement", [], [first[0], second[0]], [], item])
    return hansa_verify.verify(pack, dump_network(NETWORK).encode())


def entry(number: int, height: int, amount: int, balance: int, account: str = "ACC-1") -> Entry:
    return Entry(account, number, height, "issue", amount, None, None, "", balance)


def test_what_adds_up_is_accepted() -> None:
    assert len(statement([entry(1, 6, 10, 10), entry(2, 6, -3, 7), entry(3, 9, 1, 8)], 8).details) == 3


@pytest.mark.parametrize(
    ("entries", "balance", "told"),
    [
        ([entry(1, 6, 10, 10), entry(3, 7, 5, 15)], 15, "entry 2 does not continue"),
        ([entry(1, 6, 10, 10, "ACC-2")], 10, "entry 1 does not continue"),
        ([entry(1, 6, 10, 11)], 11, "entry 1 does not continue"),
        ([entry(1, 6, 10, 10), entry(2, 7, 5, 15)], 16, "do not lead"),
        ([entry(1, 5, 10, 10)], 10, "entry 1 is out of order"),
        ([entry(1, 10, 10, 10)], 10, "entry 1 is out of order"),
        ([entry(1, 8, 10, 10), entry(2, 7, 5, 15)], 15, "entry 2 is out of order"),
    ],
)
def test_what_does_not_add_up_is_refused(entries: list[Entry], balance: int, told: str) -> None:
    with pytest.raises(hansa_verify.Refused, match=told):
        statement(entries, balance)


@pytest.mark.parametrize(
    "following",
    [
        VALIDATORS,
        [],
        [*VALIDATORS, ("bank-z", VOTING["bank-a"].public)],
        [*VALIDATORS, ("bank-a", VOTING["bank-e"].public)],
    ],
)
def test_a_change_changes_something_and_names_nobody_twice(following: list[tuple[str, bytes]]) -> None:
    account = Account("bank-a", "USD", 0, 0, 0, b"", (), True)
    block, proof = block_with(9, account)
    change = [*signed_block(3, bytes(32), following), following]
    pack = sealed(["hansa/evidence", 1, "state", [change], [block], [], [proof]])
    with pytest.raises(hansa_verify.Refused, match="no change of validators in block 3"):
        hansa_verify.verify(pack, dump_network(NETWORK).encode())


@pytest.mark.parametrize("kind", ["descending", "twice", "cut"])
def test_a_leaf_lists_each_key_once_in_order(kind: str) -> None:
    name, value = sha256(KEY), encode(["first"])
    pair = name + sha256(value)
    leaf = {
        "descending": bytes([255]) * 64 + pair,
        "twice": name + sha256(encode(["second"])) + pair,
        "cut": pair + bytes([255]) * 32,
    }[kind]
    others, place = bytes(480), 32 * (name[0] >> 4)
    node = sha256(others[:place] + sha256(b"\x00" + leaf) + others[place:])
    block = signed_block(9, sha256(b"hansa/state" + bytes([4]) + node), VALIDATORS)
    pack = sealed(["hansa/evidence", 1, "state", [], [block], [], [(KEY, value, (others,), leaf)]])
    with pytest.raises(hansa_verify.Refused, match="leaf is malformed"):
        hansa_verify.verify(pack, dump_network(NETWORK).encode())


def test_a_forged_absence_key_that_no_state_can_hold_is_refused_before_it_is_put_into_words() -> None:
    """The time to name one of many openings without an end grew with the square of its length: hours for a pack."""
    for key, accepted in ((b"\x02" * 1_024, True), (b"\x02" * 1_025, False)):
        records: dict[str, bytes | None] = {}
        tree = StateTree(4, records.get)
        staged = tree.stage({KEY: b"value"})
        records.update(staged.buckets)
        tree.commit(staged)
        block = signed_block(5, tree.root, VALIDATORS)
        pack = sealed(["hansa/evidence", 1, "absence", [], [block], [], (state_proof(tree, key, None),)])
        genesis = dump_network(NETWORK).encode()
        if accepted:
            assert hansa_verify.verify(pack, genesis).subject == key.hex()
        else:
            with pytest.raises(hansa_verify.Refused, match="the key, or"):
                hansa_verify.verify(pack, genesis)
