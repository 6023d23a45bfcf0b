"""Transactions, receipts, headers: one value, one encoding, one name; everything else is refused."""

from collections.abc import Sequence
from hashlib import sha256

import msgpack
import msgspec
import pytest

from consensus.codec import encode
from consensus.members import Members, Validator
from node.errors import RejectedTransaction
from node.ledger import (
    Body,
    Call,
    Header,
    KeySignature,
    SignedBody,
    Transaction,
    members_hash,
    merkle_path,
    merkle_root,
    opening,
    opens_with,
)

BODY = Body(
    "testnet-0123456789ab", "bank-a/treasury", "R-1", 1_700_000_000_000, "atomic", (Call("c", "m", {"a": 1}),)
)
SIGNATURES = tuple(KeySignature(bytes((number,)) * 32, bytes(64)) for number in (1, 2))


def refused(data: bytes) -> str:
    with pytest.raises(RejectedTransaction) as caught:
        Transaction.decode(data)
    return caught.value.code


@pytest.mark.parametrize("note", [0, 100, 300, 70_000])
def test_whose_a_transaction_claims_to_be_stands_in_its_first_bytes(note: int) -> None:
    """Whatever the length of its body, which is written in one, two or four bytes."""

    def made(network: str, sender: str) -> Transaction:
        calls = (Call("c", "m", {"note": "x" * note}),)
        return Transaction.assemble(Body(network, sender, "R-1", 1, "each", calls), SIGNATURES)

    item = made("net-a", "bank-a")
    assert opens_with(item.data, opening(item.body))
    assert opens_with(item.data, opening(made("net-b", "bank-a").body), opening(item.body))
    assert not opens_with(item.data)
    for network, sender in (("net-a", "bank-b"), ("net-a", "bank-a/desk"), ("net-a", "bank"), ("net-b", "bank-a")):
        assert not opens_with(item.data, opening(made(network, sender).body))
    for data in (b"", b"\x92", item.data[:3], b"\x92\xc1" + item.data[2:], bytes(400)):
        assert not opens_with(data, opening(item.body))


def test_a_transaction_is_its_bytes_and_names_body_and_signatures_apart() -> None:
    both = Transaction.assemble(BODY, SIGNATURES)
    one = Transaction.assemble(BODY, SIGNATURES[:1])
    assert Transaction.decode(both.data).body == BODY
    assert both.tx_id == one.tx_id == sha256(b"hansa/tx" + encode(BODY)).digest()
    assert both.wire_id != one.wire_id
    assert Transaction.assemble(BODY, SIGNATURES[::-1]).data == both.data


def wire(**changes: object) -> bytes:
    """The bytes of a transaction whose body has other plain values than it should."""
    plain: dict[str, object] = {
        "network": BODY.network,
        "sender": BODY.sender,
        "request_id": BODY.request_id,
        "expires_at_ms": BODY.expires_at_ms,
        "mode": BODY.mode,
        "calls": (("c", "m", {"a": 1}),),
    }
    body = msgpack.packb(tuple({**plain, **changes}.values()))
    return encode(SignedBody(body, SIGNATURES))


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "Testnet"},
        {"sender": "bank-a/a/b"},
        {"sender": "bank-a\n"},
        {"request_id": ""},
        {"request_id": "x" * 65},
        {"expires_at_ms": -1},
        {"expires_at_ms": 2**53},
        {"expires_at_ms": 1.0},
        {"expires_at_ms": True},
        {"mode": "some"},
        {"calls": ()},
        {"calls": (("c", "m", {"a": 1.5}),)},
        {"calls": (("c", "m", {"a": 2**64 - 1, "b": {1: 2}}),)},
        {"calls": (("", "m", {}),)},
        {"calls": (("c", "m" * 41, {}),)},
        {"calls": (("c", "m"),)},
        {"calls": (("c", "m", {}, None),)},
    ],
)
def test_a_malformed_body_is_refused(changes: dict[str, object]) -> None:
    assert refused(wire(**changes)) == "malformed_transaction"


def test_bytes_that_are_not_canonical_are_refused() -> None:
    good = Transaction.assemble(BODY, SIGNATURES)
    assert refused(good.data + b"\x00") == "malformed_transaction"
    assert refused(good.data[:-1]) == "malformed_transaction"
    assert refused(b"") == "malformed_transaction"
    assert refused(wire(calls=(("c", "m", {"b": 1, "a": 1}),))) == "malformed_transaction"
    long_integer = good.body_bytes.replace(
        msgpack.packb(BODY.expires_at_ms), b"\xd3" + BODY.expires_at_ms.to_bytes(8)
    )
    assert long_integer != good.body_bytes
    assert refused(encode(SignedBody(long_integer, SIGNATURES))) == "malformed_transaction"


@pytest.mark.parametrize("signatures", [(), SIGNATURES[::-1], (SIGNATURES[0], SIGNATURES[0])])
def test_signatures_stand_in_the_order_of_their_keys_each_once(signatures: tuple[KeySignature, ...]) -> None:
    assert refused(encode(SignedBody(encode(BODY), signatures))) == "malformed_transaction"


def test_nesting_beyond_the_limit_is_refused() -> None:
    value: object = 1
    for _ in range(40):
        value = (value,)
    assert refused(wire(calls=(("c", "m", {"a": value}),))) == "malformed_transaction"


# The vectors of the certificate-transparency project for RFC 6962: leaves, roots by number of leaves, audit paths.
LEAVES = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    bytes(range(0x50, 0x58)),
    bytes(range(0x60, 0x70)),
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def test_merkle_roots_are_those_of_rfc_6962() -> None:
    assert {count: merkle_root(LEAVES[:count]).hex() for count in ROOTS} == ROOTS


@pytest.mark.parametrize(
    ("index", "count", "path"),
    [
        (0, 1, []),
        (
            0,
            8,
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (
            1,
            5,
            [
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ],
)
def test_audit_paths_are_those_of_rfc_6962(index: int, count: int, path: list[str]) -> None:
    assert [beside.hex() for _, beside in merkle_path(LEAVES[:count], index)] == path


def test_an_audit_path_leads_from_its_leaf_to_the_root_and_no_other_does() -> None:
    leaves = [b"%d" % number for number in range(40)]
    for count in range(1, 41):
        for index in range(count):
            ends = [follow(leaf, merkle_path(leaves[:count], index)) for leaf in (leaves[index], b"other")]
            assert ends[0] == merkle_root(leaves[:count]) != ends[1]
    for index in (-1, 40):
        with pytest.raises(ValueError, match="no leaf"):
            merkle_path(leaves, index)


def follow(leaf: bytes, path: Sequence[tuple[int, bytes]]) -> bytes:
    """The root that a path leads to, by the words of its docstring."""
    node = sha256(b"\x00" + leaf).digest()
    for side, beside in path:
        node = sha256(b"\x01" + (node + beside if side else beside + node)).digest()
    return node


def test_a_header_commits_to_every_field() -> None:
    header = Header("net", 1, b"p" * 32, 5, "a", b"t" * 32, b"r" * 32, b"s" * 32, b"m" * 32, b"c" * 32)
    others = [header]
    for field in Header.__struct_fields__:
        value = getattr(header, field)
        other = value + 1 if isinstance(value, int) else value[:-1] + (b"!" if isinstance(value, bytes) else "!")
        others.append(msgspec.structs.replace(header, **{field: other}))
    assert len({other.digest for other in others}) == 11


def test_the_members_hash_names_order_ids_and_keys() -> None:
    first, second = Validator("a", b"1" * 32), Validator("b", b"2" * 32)
    hashes = [
        members_hash(Members(validators))
        for validators in ((first, second), (second, first), (first,), (Validator("a", b"3" * 32), second))
    ]
    assert len(set(hashes)) == 4
