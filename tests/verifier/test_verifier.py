"""hansa-verify accepts what a real ledger proves, says it in words, and refuses what proves nothing."""

import json
from collections.abc import Callable
from typing import Any

import hansa_verify
import msgpack
import pytest
from hansa_verify import Refused, verify

from consensus.codec import encode
from contracts.state_keys import encode_key
from node.evidence import account_key
from node.ledger import content_root, merkle_path, merkle_root, sha256
from tests.node.evidence_world import SIGNING, VOTING
from tests.verifier.forger import BLOCKS, CHANGES, ITEM, LINKS, opened, sealed
from tests.verifier.packs import EPOCHS, MadePack, World


def reason(pack: MadePack, data: bytes | None = None, **options: Any) -> str:
    """Why the verifier refuses the pack, or `data` in its stead."""
    asked = {"checkpoint": pack.checkpoint, "expect": pack.expect, "genesis": pack.genesis, **options}
    with pytest.raises(Refused) as refused:
        verify(pack.data if data is None else data, **asked)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def forged(pack: MadePack, change: Callable[[list[Any]], object]) -> str:
    """Why the pack is refused after `change`, sealed anew."""
    rows = opened(pack.data)
    change(rows)
    return reason(pack, sealed(rows))


# --- what it accepts -------------------------------------------------------------------------------------


def test_every_kind_of_pack_is_accepted(world: World) -> None:
    assert {pack.kind for pack in world.packs} == set(hansa_verify.KINDS)
    for pack in world.packs:
        proof = verify(pack.data, pack.genesis, pack.checkpoint, pack.expect)
        # A key is named in hex or, as the verifier itself does, in words.
        assert verify(pack.data, pack.genesis, pack.checkpoint, f"{proof.kind}:{proof.subject}") == proof


def test_it_says_what_by_whom_and_when(packs: dict[str, MadePack]) -> None:
    pack = packs["transaction of the second epoch"]
    proof = verify(pack.data, pack.genesis)
    assert proof.subject in proof.proven[0]
    assert "is final in block 6" in proof.proven[0]
    assert "with the signatures of bank-e, bank-b, bank-c: a quorum of its 4 members" in proof.proven[1]
    assert "2023-11-14 22:13:26.000+00:00 (block time)" in proof.proven[1]
    assert SIGNING.public.hex() in proof.details[0]
    assert proof.details[1].endswith(": ok")
    assert "--checkpoint" in proof.assumed[2]
    assert proof.blocks[0].signers == ["bank-e", "bank-b", "bank-c"]


def test_a_statement_lists_every_entry(packs: dict[str, MadePack]) -> None:
    pack = packs["statement over all epochs"]
    proof = verify(pack.data, pack.genesis)
    assert "held 1000000 USD (minor units) after block 2, 1000664 after block 10" in proof.proven[0]
    assert proof.proven[0].endswith(f"Its entries in between, none left out ({len(proof.details)}):")
    assert proof.details[0] == 'entry 2, block 3: transfer +10 (other side "ACC-1"), then 1000010'


def test_a_key_is_told_in_words_that_no_other_key_has(packs: dict[str, MadePack]) -> None:
    pack = packs["state now"]
    proof = verify(pack.data, pack.genesis)
    assert proof.subject == '["settlement", "accounts", "ACC-1"]'
    assert f"the state holds under the key {proof.subject}: " in proof.proven[0]
    assert "proves state:" in reason(pack, pack.data, expect='state:["settlement", "accounts", "ACC-2"]')
    for parts in (("a", 7, "b\x00c", "é"), ("a\x00", "\x01"), ("a", "", 2**64 - 1), ()):
        assert json.loads(hansa_verify.named(encode_key(parts))) == list(parts)
    # What is no key of texts and integers stays as it is: never the words of another one.
    strange = (b"\x02a", b"\x02\xff\x00\x00", b"\x02a\x00\x00x", encode_key((b"a", True)), b"\x02a\x00\x02\x00\x00")
    for key in strange:
        assert hansa_verify.named(key) == key.hex()


def test_an_account_may_begin_within_its_statement(packs: dict[str, MadePack]) -> None:
    pack = packs["statement from before the account"]
    assert "held 0 USD" in verify(pack.data, pack.genesis, pack.checkpoint).proven[0]


def test_a_deep_bucket_is_reached(packs: dict[str, MadePack]) -> None:
    """More than 64 keys lie in each of the 16 buckets, so the ways are longer than the tree is deep."""
    levels = {name: len(opened(packs[name].data)[ITEM][0][2]) for name in ("state now", "absence now")}
    assert min(levels.values()) > 1


def test_a_checkpoint_replaces_the_trust_in_old_keys(packs: dict[str, MadePack]) -> None:
    pack = packs["transaction up to a checkpoint"]
    assert pack.checkpoint is not None
    assumed = verify(pack.data, pack.genesis, pack.checkpoint).assumed
    assert any(text.startswith(pack.checkpoint) for text in assumed)
    assert not any("lost its keys" in text for text in assumed)
    unlinked = packs["statement from its opening on"]
    assumed = verify(unlinked.data, unlinked.genesis, unlinked.checkpoint).assumed
    assert any("up to block 1 lost its keys" in text for text in assumed)


def test_without_a_checkpoint_a_statement_rests_on_the_keys_up_to_its_closing_block(
    packs: dict[str, MadePack],
) -> None:
    """Whoever had the keys of the closing block's members could forge that block, not only the opening one."""
    pack = packs["statement over all epochs"]
    proof = verify(pack.data, pack.genesis)
    assert [block.height for block in proof.blocks] == [2, 10]
    [leak] = [text for text in proof.assumed if "lost its keys" in text]
    assert "up to block 10 lost its keys" in leak


def test_a_checkpoint_may_be_the_proven_block_itself(packs: dict[str, MadePack]) -> None:
    pack = packs["state now"]
    block = verify(pack.data, pack.genesis).blocks[0]
    assert verify(pack.data, pack.genesis, f"{block.height}:{block.digest.hex()}").kind == "state"


def test_a_change_that_no_signature_needs_may_be_missing(packs: dict[str, MadePack]) -> None:
    """The proof still rests on a quorum of a list to which genesis leads, so nothing false can be proven so."""
    pack = packs["transaction of the third epoch"]
    rows = opened(pack.data)
    second = rows[CHANGES][1]
    # Members 1 … 3 of the first two epochs are the same, in the same places: their votes count in both.
    view, digest = second[1][0], sha256(b"hansa/header" + encode(second[0]))
    vote = encode(["hansa/vote", second[0][0], 2, view, second[0][1], digest])
    rows[CHANGES] = [[second[0], [view, [[at, VOTING[EPOCHS[0][at]].sign(vote)] for at in (1, 2, 3)]], second[2]]]
    assert verify(sealed(rows), pack.genesis, None, pack.expect).kind == "transaction"


# --- what it refuses: who decided ------------------------------------------------------------------------


def test_another_networks_file_accepts_nothing(world: World, packs: dict[str, MadePack]) -> None:
    genesis = world.genesis.replace(b"retention_ms = 60000", b"retention_ms = 60001")
    assert genesis != world.genesis
    for pack in world.packs:
        assert "belongs to another network" in reason(pack, genesis=genesis)


def test_other_members_with_the_same_network_id_accept_nothing(
    packs: dict[str, MadePack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network id holds 48 bits of the genesis hash, so it is not what membership rests on."""
    pack = packs["transaction of the first epoch"]
    real = hansa_verify.read_network(pack.genesis)
    strangers = [[name, sha256(name.encode())] for name, _ in real.validators]
    monkeypatch.setattr(hansa_verify, "read_network", lambda _: real._replace(validators=strangers))
    assert "has not signed block 3" in reason(pack)


def test_a_quorum_is_neither_less_nor_more(packs: dict[str, MadePack]) -> None:
    pack = packs["state now"]
    assert "exactly the 2 signatures" in forged(pack, lambda rows: rows[BLOCKS][0][1][1].pop())
    rows = opened(pack.data)
    header, (view, signatures) = rows[BLOCKS][0]
    vote = encode(["hansa/vote", header[0], 2, view, header[1], sha256(b"hansa/header" + encode(header))])
    signatures.append([2, VOTING["bank-d"].sign(vote)])
    assert "exactly the 2 signatures" in reason(pack, sealed(rows))


def test_nobody_counts_twice(packs: dict[str, MadePack]) -> None:
    def repeat(rows: list[Any]) -> None:
        signatures = rows[BLOCKS][0][1][1]
        signatures[1] = signatures[0]

    def exchange(rows: list[Any]) -> None:
        rows[BLOCKS][0][1][1].reverse()

    for change in (repeat, exchange):
        assert "signers do not ascend" in forged(packs["state now"], change)


def test_a_prepare_vote_decides_nothing(packs: dict[str, MadePack]) -> None:
    rows = opened(packs["state now"].data)
    header, (view, _) = rows[BLOCKS][0]
    vote = encode(["hansa/vote", header[0], 1, view, header[1], sha256(b"hansa/header" + encode(header))])
    rows[BLOCKS][0][1][1] = [[at, VOTING[bank].sign(vote)] for at, bank in enumerate(EPOCHS[2][:2])]
    assert "has not signed block" in reason(packs["state now"], sealed(rows))


def test_block_1_stands_on_the_genesis_file(packs: dict[str, MadePack]) -> None:
    rows = opened(packs["statement from its opening on"].data)
    header = rows[BLOCKS][0][0]
    assert header[1] == 1
    header[2] = sha256(b"another genesis")
    vote = encode(["hansa/vote", header[0], 2, 0, 1, sha256(b"hansa/header" + encode(header))])
    rows[BLOCKS][0][1] = [0, [[at, VOTING[bank].sign(vote)] for at, bank in enumerate(EPOCHS[0][:3])]]
    assert "block 1 does not stand on" in reason(packs["statement from its opening on"], sealed(rows))


def test_a_missing_change_is_noticed(packs: dict[str, MadePack]) -> None:
    pack = packs["state now"]
    for at in (0, 1):
        rows = opened(pack.data)
        del rows[CHANGES][at]
        assert "block" in reason(pack, sealed(rows))
    change = packs["transaction in a block that is a change"]
    assert "names other validators" in forged(change, lambda rows: rows[CHANGES].clear())


def test_changes_that_nothing_rests_on_are_refused(packs: dict[str, MadePack]) -> None:
    later = opened(packs["state now"].data)[CHANGES]
    pack = packs["state long ago"]
    assert "later than all that is proven" in forged(pack, lambda rows: rows[CHANGES].extend(later))


# --- what it refuses: the item ---------------------------------------------------------------------------


def test_a_node_is_no_leaf(packs: dict[str, MadePack]) -> None:
    def lift(rows: list[Any]) -> None:
        data, path = rows[ITEM][:2]
        side, other = path.pop(0)
        node = sha256(b"\x00" + data)
        rows[ITEM][0] = node + other if side else other + node

    assert "not in the block" in forged(packs["transaction of the first epoch"], lift)


def test_a_receipt_of_another_transaction_is_refused(packs: dict[str, MadePack]) -> None:
    other = opened(packs["transaction at the odd end of its block"].data)[ITEM]

    def swap(rows: list[Any]) -> None:
        rows[ITEM][2:] = other[2:]

    assert "another transaction's" in forged(packs["transaction of the first epoch"], swap)


def test_a_better_outcome_is_refused(packs: dict[str, MadePack]) -> None:
    def better(rows: list[Any]) -> None:
        rows[ITEM][2] = rows[ITEM][2].replace(b"ok", b"OK")

    assert "the receipt is not in the block" in forged(packs["transaction of the first epoch"], better)


def test_a_way_that_ends_too_early_is_refused(packs: dict[str, MadePack]) -> None:
    assert "wrong length" in forged(packs["absence now"], lambda rows: rows[ITEM][0][2].clear())


def test_a_leaf_of_another_place_shows_no_absence(packs: dict[str, MadePack]) -> None:
    """The way follows from the key: the proof of one key says nothing of another."""

    def other_key(rows: list[Any]) -> None:
        rows[ITEM][0][0] = account_key("ACC-2")

    assert "does not lead to the block's state" in forged(packs["absence now"], other_key)


@pytest.mark.parametrize(
    ("shift_ms", "told"), [(10_000, "not past the expiry"), (-60_001 + 10_000, "past the retention")]
)
def test_outside_the_window_nothing_is_said_of_execution(
    packs: dict[str, MadePack], shift_ms: int, told: str
) -> None:
    """The block is 10 s past the expiry; the retention is 60 s."""

    def other_expiry(rows: list[Any]) -> None:
        body = msgpack.unpackb(rows[ITEM][0])
        body[3] += shift_ms
        rows[ITEM][0] = encode(body)

    assert told in forged(packs["not_executed unused"], other_expiry)


@pytest.mark.parametrize("shift_ms", [9_999, -50_000])
def test_at_the_edges_of_the_window_it_is(packs: dict[str, MadePack], shift_ms: int) -> None:
    rows = opened(packs["not_executed unused"].data)
    body = msgpack.unpackb(rows[ITEM][0])
    body[3] += shift_ms
    rows[ITEM][0] = encode(body)
    assert verify(sealed(rows), packs["not_executed unused"].genesis).kind == "not_executed"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [(0, "other-000000000000", "for another network"), (5, [["c", "m", {"a": bytes(2**21)}]], "too large")],
)
def test_what_this_network_could_never_execute_needs_no_proof(
    packs: dict[str, MadePack], field: int, value: Any, told: str
) -> None:
    def other(rows: list[Any]) -> None:
        body = msgpack.unpackb(rows[ITEM][0])
        body[field] = value
        rows[ITEM][0] = encode(body)

    assert told in forged(packs["not_executed unused"], other)


def test_a_side_is_left_or_right(packs: dict[str, MadePack]) -> None:
    def beyond(rows: list[Any]) -> None:
        step = next(step for step in rows[ITEM][1] if step[0] == 1)
        step[0] = 2

    assert "a side is 0 or 1" in forged(packs["transaction of the first epoch"], beyond)


def test_another_request_id_proves_nothing_of_this_one(packs: dict[str, MadePack]) -> None:
    def other(rows: list[Any]) -> None:
        body = msgpack.unpackb(rows[ITEM][0])
        body[2] = "executed"
        rows[ITEM][0] = encode(body)

    assert "another request id" in forged(packs["not_executed unused"], other)


def test_an_executed_transaction_was_executed(world: World, packs: dict[str, MadePack]) -> None:
    def executed(rows: list[Any]) -> None:
        rows[ITEM][0] = world.replacement.body_bytes

    assert "was executed" in forged(packs["not_executed replaced"], executed)


def test_a_statement_of_two_accounts_is_refused(packs: dict[str, MadePack]) -> None:
    other = opened(packs["statement from its opening on"].data)

    def mix(rows: list[Any]) -> None:
        rows[CHANGES], rows[BLOCKS] = other[CHANGES], [other[BLOCKS][0], rows[BLOCKS][1]]
        rows[ITEM][0] = other[ITEM][0]

    rows = opened(packs["statement over all epochs"].data)
    mix(rows)
    rows[CHANGES] = opened(packs["statement over all epochs"].data)[CHANGES]
    assert "two accounts" in reason(packs["statement over all epochs"], sealed(rows))


def test_a_statement_lacks_no_entry(packs: dict[str, MadePack]) -> None:
    pack = packs["statement over all epochs"]
    for at in (0, 3, -1):
        rows = opened(pack.data)
        del rows[ITEM][2][at]
        told = reason(pack, sealed(rows))
        assert "does not continue" in told or "do not lead" in told


def test_a_proof_of_something_else_is_refused_where_something_is_expected(packs: dict[str, MadePack]) -> None:
    pack = packs["state now"]
    assert "the pack proves state:" in reason(pack, expect="state:00")


# --- what it refuses: bytes ------------------------------------------------------------------------------


def test_links_without_a_checkpoint_are_refused(packs: dict[str, MadePack]) -> None:
    pack = packs["state linked"]
    assert "name it" in reason(pack, checkpoint=None)
    assert "no checkpoint" in reason(pack, checkpoint=f"10:{'0' * 64}")
    assert "break after" in forged(pack, lambda rows: rows[LINKS].pop(0))


def test_damage_is_told_from_forgery(packs: dict[str, MadePack]) -> None:
    data = bytearray(packs["state now"].data)
    data[-40] ^= 1
    assert "the file is damaged" in reason(packs["state now"], bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x98",
        b"\xc0",
        b"not a pack",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\x98\xaehansa/evidence\x01\xa5state\xdd\xff\xff\xff\xff",
        b"\x98\xaehansa/evidence\x01\xa5state" + b"\xdc\xff\xff" * 1_000,
        b"\x98\xaehansa/evidence\x01\xa5state\x90\x90\x90\x91\x94\xc6\xff\xff\xff\xff",
        b"\x98\xaehansa/evidence\x01\xa5state" + b"\x90" * 1_000_000,
    ],
)
def test_bombs_and_rubbish_are_refused(packs: dict[str, MadePack], data: bytes) -> None:
    reason(packs["state now"], data)


def test_too_large_a_pack_is_refused_unread(packs: dict[str, MadePack]) -> None:
    pack = packs["state now"]
    reason(pack, pack.data + bytes(hansa_verify.PACK_MAX))


def test_a_nested_body_is_refused(packs: dict[str, MadePack]) -> None:
    """The body of what was not executed comes from anybody: its arguments may be anything."""
    pack = packs["not_executed unused"]
    for bomb in (b"\x91" * 50_000 + b"\xc0", b"\x81\xa1a" * 50_000 + b"\xc0", b"\xdd\x00\x0f\x42\x40" * 400):

        def nest(rows: list[Any], bomb: bytes = bomb) -> None:
            body = msgpack.unpackb(rows[ITEM][0])
            head = encode(body[:5])[1:]
            rows[ITEM][0] = b"\x96" + head + b"\x91\x93\xa1c\xa1m\x81\xa1a" + bomb

        assert "malformed" in forged(pack, nest)


# --- RFC 6962 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 34))
def test_every_leaf_of_a_tree_leads_to_its_root(count: int) -> None:
    leaves = [bytes((number,)) * number for number in range(count)]
    for index in range(count):
        path = [list(step) for step in merkle_path(leaves, index)]
        assert hansa_verify.merkle_root(leaves[index], path) == merkle_root(leaves)


def test_the_quarantined_positions_are_a_leaf_and_no_transaction() -> None:
    marker = encode(("hansa/quarantined", (1,)))
    path = [list(step) for step in merkle_path([b"a", b"b", marker], 2)]
    assert hansa_verify.merkle_root(marker, path) == content_root([b"a", b"b"], [1])
    with pytest.raises(Refused):
        hansa_verify.decode(marker, [bytes, ([32, 64],)], "the transaction")
