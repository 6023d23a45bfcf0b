"""Who approves signs for the calls that were shown, whatever a node says of them."""

import hashlib
from typing import Any, cast

import pytest

from consensus.codec import encode
from node.cli.approving import read_request
from node.cli.tiers import request_command, wanted
from node.client import Client, QueryAnswer
from node.errors import HansaError

ARGS = {"debtor": "A-1", "creditor": "B-1", "amount": 5, "proof": b"\x00\xff"}


class Node:
    """Answers the one query with `view`."""

    def __init__(self, view: dict[str, Any]) -> None:
        self.view = view

    def query(self, name: str, args: dict[str, Any]) -> QueryAnswer:
        assert (name, args) == ("approvals.show", {"request": 7})
        return QueryAnswer(value=self.view, height=1, state_root="", age_ms=0)


def view(**changes: Any) -> dict[str, Any]:
    packed = encode(ARGS)
    content = ("hansa/approval", 7, "bank-a/treasury", (("settlement", "transfer", packed),))
    found: dict[str, Any] = {
        "requester": {"principal": "bank-a/treasury", "threshold": 1, "keys": []},
        "calls": [{"contract": "settlement", "method": "transfer", "args": {}, "packed": packed.hex()}],
        "digest": hashlib.sha256(encode(content)).hexdigest(),
    }
    return {**found, **changes}


def read(found: dict[str, Any]) -> Any:
    return read_request(cast(Client, Node(found)), 7)


def test_the_calls_that_are_shown_are_those_of_the_digest() -> None:
    shown = read(view())
    assert (shown.calls[0].method, shown.calls[0].args) == ("transfer", ARGS)
    assert shown.digest.hex() == view()["digest"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"requester": {"principal": "bank-b", "threshold": 1, "keys": []}}, "digest_differs"),
        ({"calls": []}, "digest_differs"),
        ({"digest": "00" * 32}, "digest_differs"),
        ({"digest": "no hex"}, "unexpected_answer"),
        ({"calls": [{"contract": "settlement"}]}, "unexpected_answer"),
        ({"calls": [{"contract": "a", "method": "b", "packed": "c1"}]}, "unexpected_answer"),
        ({"calls": [{"contract": "a", "method": "b", "packed": "01"}]}, "unexpected_answer"),
        ({"calls": None}, "unexpected_answer"),
    ],
)
def test_a_node_that_lies_or_stammers_is_told_so(change: dict[str, Any], code: str) -> None:
    with pytest.raises(HansaError) as caught:
        read(view(**change))
    assert caught.value.code == code


def test_words_name_everybody_and_who_spoke() -> None:
    seats = [
        {"person": "bank-a/anna", "by": "bank-a/anna"},
        {"person": "bank-a/ben", "by": "bank-a/dora"},
        {"person": "bank-a/cleo", "by": ""},
    ]
    [line] = wanted({"tiers": [{"tier": "large", "groups": [{"threshold": 2, "seats": seats}]}]})
    assert line == "large: 2 of bank-a/anna (yes), bank-a/ben (yes, by bank-a/dora), bank-a/cleo"
    assert request_command(["till.deposit", "note=a b"], "bank-a").endswith("till.deposit 'note=a b' --as bank-a")
