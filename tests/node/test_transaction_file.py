"""The file in which a transaction travels: what is shown is what is signed, and whoever changes it is noticed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import encode
from node.client.transaction_file import (
    BODY_SIZE_MAX,
    FILE_SIZE_MAX,
    POLICY_KEYS_MAX,
    KnownPolicy,
    PolicyKey,
    TransactionFile,
)
from node.errors import ConfigError, HansaError, RejectedTransaction
from node.keys import SigningKey
from node.ledger import SIGNATURES_MAX, Body, Call, Transaction

ANNA, BEN, CARLA, STRANGER = (SigningKey(bytes([number]) * 32) for number in range(1, 5))
POLICY = KnownPolicy(
    2,
    (
        PolicyKey(ANNA.public.hex(), "bank-a/anna"),
        PolicyKey(BEN.public.hex(), "bank-a/ben"),
        PolicyKey(CARLA.public.hex()),
    ),
    41,
)
EXPIRES_AT_MS = 1_800_000_000_000


def body(*calls: Call, **changes: Any) -> Body:
    given = {
        "network": "pilot-0123456789ab",
        "sender": "bank-a/treasury",
        "request_id": "order-1",
        "expires_at_ms": EXPIRES_AT_MS,
        "mode": "atomic",
        "calls": calls or (Call("settlement", "transfer", {"debtor": "A-1", "creditor": "B-1", "amount": 2500}),),
    }
    return Body(**(given | changes))  # type: ignore[arg-type]


def altered(file: TransactionFile, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(file.encode())
    change(document)
    return json.dumps(document).encode()


def test_maker_and_checker_sign_one_after_the_other() -> None:
    made = TransactionFile(body(), POLICY)
    assert made.standing().startswith("0 of 2 signatures; missing: 2 more, by any of bank-a/anna (key ")
    once = TransactionFile.decode(made.encode()).signed_by(ANNA)
    words = TransactionFile.decode(once.encode()).standing()
    assert words.startswith("1 of 2 signatures, by bank-a/anna (key ")
    assert "missing: 1 more, by any of bank-a/ben (key " in words
    assert words.count("key ") == 3
    twice = TransactionFile.decode(once.encode()).signed_by(CARLA)
    assert "missing" not in twice.standing()
    sent = twice.transaction()
    assert Transaction.decode(sent.data).tx_id == made.tx_id
    assert {item.key for item in sent.signatures} == {ANNA.public, CARLA.public}
    assert sent.body == body()


def test_every_part_of_the_body_stands_in_the_words() -> None:
    calls = [
        Call("settlement", "transfer", {"creditor": "B-1", "amount": 5, "uetr": b"\x00\xff", "reference": None}),
        Call("settlement", "transfer", {"creditor": "B-2", "amount": 7, "flags": [True, {"b": 1, "a": "x"}]}),
        Call("claims", "close", {}),
    ]
    words = TransactionFile(body(*calls, mode="each"), POLICY).summary()
    assert words == (
        "bank-a/treasury on pilot-0123456789ab, request order-1",
        "valid until 2027-01-15 08:00:00 UTC",
        "1 × claims.close, 2 × settlement.transfer (amounts together 12); each call for itself",
        '1. settlement.transfer: amount = 5, creditor = "B-1", reference = null, uetr = 0x00ff',
        '2. settlement.transfer: amount = 7, creditor = "B-2", flags = [true, {"a": "x", "b": 1}]',
        "3. claims.close",
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("B-1\x1b[2K", '"B-1\\u001b[2K"'),
        ("1.00\u202e00.1", '"1.00\\u202e00.1"'),
        ("a\nb\x85c", '"a\\nb\\u0085c"'),
        ("\\u202e", '"\\\\u202e"'),
        ("\ue000" + "1", '"\\ue0001"'),
        ("\U000e0001", '"\\U000e0001"'),
        ('", amount = 1', '"\\", amount = 1"'),
        ("Müller & Söhne", '"Müller & Söhne"'),
    ],
)
def test_text_can_neither_hide_nor_pass_for_something_else(text: str, shown: str) -> None:
    words = TransactionFile(body(Call("till", "pay", {"to": text})), POLICY).summary()
    assert words[-1] == f"1. till.pay: to = {shown}"
    named = TransactionFile(body(Call("till", "pay", {text: 1})), POLICY).summary()
    assert named[-1] == f"1. till.pay: {shown} = 1"


_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=15)
@given(
    st.dictionaries(st.text(max_size=4), _plain, max_size=3),
    st.dictionaries(st.text(max_size=4), _plain, max_size=3),
)
def test_no_two_contents_have_the_same_words(first: dict[str, Any], second: dict[str, Any]) -> None:
    left, right = (TransactionFile(body(Call("c", "m", args)), POLICY) for args in (first, second))
    assert (left.summary() == right.summary()) == (left.body_bytes == right.body_bytes)
    assert all(line.isprintable() for line in left.summary())
    assert TransactionFile.decode(left.encode()).body_bytes == left.body_bytes


def test_a_file_that_was_changed_is_refused_whole() -> None:
    signed = TransactionFile(body(), POLICY).signed_by(ANNA)
    other = TransactionFile(body(request_id="order-2"), POLICY)

    def body_only(document: dict[str, Any]) -> None:
        document["body"] = other.body_bytes.hex()

    def body_and_words(document: dict[str, Any]) -> None:
        document |= {"body": other.body_bytes.hex(), "summary": list(other.summary()), "tx_id": other.tx_id.hex()}

    def words_only(document: dict[str, Any]) -> None:
        document["summary"][3] = document["summary"][3].replace("2500", "25")

    def signature(document: dict[str, Any]) -> None:
        document["signatures"][0]["signature"] = "00" * 64

    def another_signer(document: dict[str, Any]) -> None:
        document["signatures"][0]["key"] = BEN.public.hex()

    def the_same_twice(document: dict[str, Any]) -> None:
        document["signatures"] *= 2

    for change in (body_only, body_and_words, words_only, signature, another_signer, the_same_twice):
        with pytest.raises(ConfigError) as caught:
            TransactionFile.decode(altered(signed, change))
        assert caught.value.code == "transaction_file_altered", change.__name__


def test_a_field_that_stands_twice_is_refused() -> None:
    """A person who opens the file reads the first summary, and a program takes the last."""
    data = TransactionFile(body(), POLICY).encode().decode()
    hostile = data.replace('"summary":', '"summary": ["500 to B-1"],\n  "summary":')
    with pytest.raises(ConfigError, match="twice") as caught:
        TransactionFile.decode(hostile.encode())
    assert caught.value.code == "transaction_file_invalid"


def test_a_policy_that_shows_one_signature_as_two_is_refused() -> None:
    signed = TransactionFile(body(), POLICY).signed_by(ANNA)

    def twice(document: dict[str, Any]) -> None:
        document["policy"]["keys"][1]["key"] = ANNA.public.hex()

    def never_enough(document: dict[str, Any]) -> None:
        document["policy"]["threshold"] = 4

    for change in (twice, never_enough):
        with pytest.raises(ConfigError) as caught:
            TransactionFile.decode(altered(signed, change))
        assert caught.value.code == "transaction_file_invalid", change.__name__


@pytest.mark.parametrize("name", ["bank-a/anna, bank-a/ben", "bank-a/anna\n3 of 2", "Anna", ""])
def test_a_name_in_the_policy_is_a_principals_and_no_other_words(name: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["policy"]["keys"][2]["name"] = name

    with pytest.raises(ConfigError) as caught:
        TransactionFile.decode(altered(TransactionFile(body(), POLICY), change))
    assert caught.value.code == "transaction_file_invalid"


def test_what_is_no_transaction_file_is_refused() -> None:
    good = TransactionFile(body(), POLICY)

    def changed(**parts: Any) -> bytes:
        return altered(good, lambda document: document.update(parts))

    hostile = [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"hansa_transaction": 1}',
        good.encode()[:-20],
        changed(hansa_transaction=2),
        changed(more=1),
        changed(body="zz"),
        changed(body="00"),
        changed(body=encode((1, 2)).hex()),
        changed(body=good.body_bytes.hex() + "00"),
        changed(body="00" * (BODY_SIZE_MAX + 1)),
        changed(policy={"threshold": 0, "keys": [], "height": 0}),
        changed(policy={"threshold": 1, "keys": [{"key": "00" * 32}] * (POLICY_KEYS_MAX + 1), "height": 0}),
        changed(signatures=[{"key": "00" * 32, "signature": "00" * 64}] * (SIGNATURES_MAX + 1)),
        b" " * (FILE_SIZE_MAX + 1),
    ]
    for data in hostile:
        with pytest.raises(ConfigError) as caught:
            TransactionFile.decode(data)
        assert caught.value.code == "transaction_file_invalid", data[:60]
        assert len(str(caught.value)) < 500


def test_who_may_not_sign_does_not() -> None:
    made = TransactionFile(body(), POLICY)
    signed = made.signed_by(ANNA)
    with pytest.raises(
        RejectedTransaction, match=r"none of those that sign for bank-a/treasury: bank-a/anna"
    ) as caught:
        made.signed_by(STRANGER)
    assert caught.value.code == "signer_not_entitled"
    with pytest.raises(RejectedTransaction, match="bank-a/anna") as caught:
        signed.signed_by(ANNA)
    assert caught.value.code == "already_signed"
    with pytest.raises(RejectedTransaction) as caught:
        made.transaction()
    assert caught.value.code == "policy_unsatisfied"


def test_a_device_that_signs_something_else_is_noticed() -> None:
    class Device:
        public = ANNA.public

        def sign(self, message: bytes, /) -> bytes:
            return ANNA.sign(message + b"?")

    with pytest.raises(HansaError) as caught:
        TransactionFile(body(), POLICY).signed_by(Device())
    assert caught.value.code == "bad_signature"


@pytest.mark.slow
def test_the_largest_transaction_fits_its_file_with_all_signatures() -> None:
    """A control character takes the most room: one byte of the body, seven characters of the words in the file."""
    keys = [SigningKey(bytes([number]) * 32) for number in range(SIGNATURES_MAX)]
    policy = KnownPolicy(1, tuple(PolicyKey(key.public.hex()) for key in keys), 0)
    room = BODY_SIZE_MAX - len(encode(body(Call("c", "m", {"a": ""})))) - 4
    file = TransactionFile(body(Call("c", "m", {"a": "\x7f" * room})), policy)
    for key in keys:
        file = file.signed_by(key)
    same = TransactionFile.decode(file.encode()).transaction().wire_id == file.transaction().wire_id
    assert same
    with pytest.raises(RejectedTransaction) as caught:
        TransactionFile(body(Call("c", "m", {"a": "\x7f" * (room + 5)})), policy)
    assert caught.value.code == "transaction_too_large"
