"""Transactions, receipts, headers, blocks and their hashes: the ledger's vocabulary, pure.

A transaction has two names: `tx_id`, the hash of its body (what users see, and what makes it idempotent),
and `wire_id`, the hash of body and signatures (what gossip and proposals name: two members must never execute
different signature sets under one name).
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from consensus.codec import CodecError, check_plain, decode, encode
from consensus.members import Members, Validator
from consensus.messages import Certificate
from node.errors import RejectedTransaction

CALLS_MAX = 10_000
SIGNATURES_MAX = 16
TRANSACTION_SIZE_MAX = 2 * 1024 * 1024
EXPIRY_AHEAD_MS_MAX = 24 * 60 * 60 * 1000
_BODY_OPENS = b"\x96"
"""MessagePack's array of six."""
_BODY_AT = {b"\xc4": 3, b"\xc5": 4, b"\xc6": 6}
"""Where the body begins in a transaction, by the kind of its length: of one, two or four bytes."""

Hash: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Key: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Ed25519Signature: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
PrincipalName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}(/[a-z][a-z0-9-]{0,31})?\Z")]
RequestId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:/-]{1,64}\Z")]
NetworkId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]
TimeMs: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Height: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def sha256(data: bytes) -> bytes:
    """The ledger's one hash."""
    return hashlib.sha256(data).digest()


class _Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array."""


class Call(_Item, frozen=True):
    """One call of a contract's method with named arguments (plain values). Names nobody has give an outcome."""

    contract: Name
    method: Name
    args: dict[str, Any]


class Body(_Item, frozen=True):
    """What the sender wants and signs. Times are Unix milliseconds."""

    network: NetworkId
    sender: PrincipalName
    request_id: RequestId
    expires_at_ms: TimeMs
    mode: Literal["atomic", "each"]
    calls: Annotated[tuple[Call, ...], msgspec.Meta(min_length=1, max_length=CALLS_MAX)]


class KeySignature(_Item, frozen=True):
    """A signature over the body, with the public key that made it."""

    key: Key
    signature: Ed25519Signature


class SignedBody(_Item, frozen=True):
    """The transaction on the wire and in a block: canonical body bytes, then 1 … 16 signatures by ascending key."""

    body: Annotated[bytes, msgspec.Meta(max_length=TRANSACTION_SIZE_MAX)]
    signatures: Annotated[tuple[KeySignature, ...], msgspec.Meta(min_length=1, max_length=SIGNATURES_MAX)]


def decode_body(data: bytes) -> Body:
    """Return the body whose canonical bytes are `data`; raise CodecError when they are none."""
    body = decode(data, Body, size_max=TRANSACTION_SIZE_MAX)
    for call in body.calls:
        check_plain(call.args)
    return body


class Transaction:
    """A decoded, well-formed transaction with its canonical bytes; its signatures are not yet verified."""

    __slots__ = ("body", "body_bytes", "data", "signatures", "tx_id", "wire_id")

    def __init__(self, body: Body, body_bytes: bytes, signatures: tuple[KeySignature, ...], data: bytes) -> None:
        self.body = body
        self.body_bytes = body_bytes
        self.signatures = signatures
        self.data = data
        self.tx_id = transaction_id(body_bytes)
        self.wire_id = sha256(b"hansa/wire" + data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transaction) and self.data == other.data

    def __hash__(self) -> int:
        return int.from_bytes(self.wire_id[:8], "big")

    @classmethod
    def decode(cls, data: bytes) -> "Transaction":
        """Return the transaction in `data`; raise RejectedTransaction when it is not canonical."""
        try:
            wire = decode(data, SignedBody, size_max=TRANSACTION_SIZE_MAX)
            body = decode_body(wire.body)
            for left, right in itertools.pairwise(wire.signatures):
                if left.key >= right.key:
                    raise CodecError("signing keys must ascend without repetition")
        except CodecError as error:
            raise RejectedTransaction("malformed_transaction", str(error)) from error
        return cls(body, wire.body, wire.signatures, data)

    @classmethod
    def assemble(cls, body: Body, signatures: Sequence[KeySignature]) -> "Transaction":
        """Return the transaction of `body` with `signatures` in their canonical order."""
        body_bytes = encode(body)
        ordered = tuple(sorted(signatures, key=lambda item: item.key))
        return cls.decode(encode(SignedBody(body_bytes, ordered)))


def opening(body: Body) -> bytes:
    """The bytes with which every body of that network and sender begins in its encoding, and no other does."""
    return _BODY_OPENS + encode(body.network) + encode(body.sender)


def opens_with(data: bytes, *openings: bytes) -> bool:
    """Whether the body of the transaction in `data`, if that is one at all, begins with one of these.

    Nothing is decoded: it is for those who only want to know whose the transaction claims to be.
    """
    return data.startswith(openings, _BODY_AT.get(data[1:2], len(data)))


def request_conflict(request_id: str, tx_id: bytes) -> RejectedTransaction:
    """Return the refusal of a transaction whose sender has used its request id for `tx_id`."""
    name = tx_id.hex()
    return RejectedTransaction(
        "request_conflict", f"{request_id} is the request_id of transaction {name}", tx_id=name
    )


def transaction_id(body_bytes: bytes) -> bytes:
    """The name of the transaction with that body, whoever signs it."""
    return sha256(b"hansa/tx" + body_bytes)


def transaction_signing_bytes(body_bytes: bytes) -> bytes:
    """The bytes that a transaction's signature signs (the network id stands in the body)."""
    return b"hansa/transaction" + sha256(body_bytes)


class EventData(_Item, frozen=True):
    """An event as it stands in a receipt. `topics` are the values under which it can be looked up."""

    contract: str
    name: str
    topics: tuple[str, ...]
    data: dict[str, Any]


class CallReceipt(_Item, frozen=True):
    """The outcome of one call: code `ok` or a stable snake_case reason, and its events (none unless ok)."""

    code: str
    events: tuple[EventData, ...]


class Receipt(_Item, frozen=True):
    """The outcome of one transaction, call by call. Commits to codes and events, never to free text.

    In `atomic` mode a failed transaction has every call `reverted` but the one that failed.
    """

    tx_id: Hash
    calls: tuple[CallReceipt, ...]


class Header(_Item, frozen=True):
    """What a block commits to. It has no view: a block prepared in one view and decided in another is the same.

    `members_hash` names the ordered validators that decide height + 1.
    """

    network: NetworkId
    height: Height
    parent: Hash
    time_ms: TimeMs
    proposer: str
    tx_root: Hash
    receipts_root: Hash
    state_root: Hash
    members_hash: Hash
    contracts_hash: Hash

    @property
    def digest(self) -> bytes:
        """The block's name: what members vote for."""
        return sha256(b"hansa/header" + encode(self))


class Proposal(_Item, frozen=True):
    """The payload of a pre-prepare: the header and the wire ids of the block's transactions, in order.

    `quarantined` are positions (ascending) of transactions settled unexecuted; allowed after two failed views.
    """

    header: Header
    wire_ids: tuple[Hash, ...]
    quarantined: tuple[int, ...]


class BlockBody(_Item, frozen=True):
    """A block with full transactions, as stored and served; the certificate is stored beside it."""

    header: Header
    transactions: tuple[bytes, ...]
    quarantined: tuple[int, ...]


class CertifiedBlock(_Item, frozen=True):
    """A decided block with its proof: enough for anybody who knows the members of its height."""

    body: BlockBody
    certificate: Certificate


class HeadRecord(_Item, frozen=True):
    """The last applied block: what the next one stands on. Height 0 is genesis and has no certificate.

    `start_view` is the view in which height + 1 starts; `validators` decide height + 1.
    """

    height: Height
    digest: Hash
    time_ms: TimeMs
    state_root: Hash
    certificate: Certificate | None
    start_view: int
    validators: tuple[Validator, ...]

    @property
    def first_view(self) -> int:
        """The view of its certificate, in which the next height begins: nobody who has this head votes below."""
        return 0 if self.certificate is None else self.certificate.view

    @property
    def members(self) -> Members:
        """The members that decide the next height."""
        return Members(self.validators)


class RequestRecord(_Item, frozen=True):
    """What the state remembers of a request id: the transaction that used it, where, and until when."""

    tx_id: Hash
    height: Height
    expires_at_ms: TimeMs


class Ending(_Item, frozen=True):
    """How an accepted transaction ended without becoming final, learnt with the block at `height`.

    `expired`: that block's time reached its expiry. `dropped`: no later block can contain it, `code` says why.
    """

    status: Literal["expired", "dropped"]
    code: str
    height: Height


class ScheduledCall(_Item, frozen=True):
    """A call in the state that waits for its time. `args` are canonical bytes, so that the value is immutable."""

    contract: str
    method: str
    args: bytes


def members_hash(members: Members) -> bytes:
    """The hash that a header carries for the ordered (id, role, voting key) list deciding the next height."""
    rows = tuple((validator.id, "validator", validator.voting_key) for validator in members)
    return sha256(b"hansa/members" + encode(rows))


def content_root(transactions: Sequence[bytes], quarantined: Sequence[int]) -> bytes:
    """The root in a header of all that the block contains: the RFC 6962 tree over the transactions' full bytes.

    Quarantined positions, where there are any, are one more leaf: else two payloads with one digest could differ.
    """
    return merkle_root(content_leaves(transactions, quarantined))


def content_leaves(transactions: Sequence[bytes], quarantined: Sequence[int]) -> list[bytes]:
    """The leaves under `content_root`: the transactions, and one more where positions are quarantined."""
    leaves = list(transactions)
    if quarantined:
        leaves.append(encode(("hansa/quarantined", tuple(quarantined))))
    return leaves


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The RFC 6962 tree hash over `leaves` (raw bytes), with SHA-256."""
    if not leaves:
        return sha256(b"")
    hashed = hashlib.sha256
    level = [hashed(b"\x00" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        paired = [hashed(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> tuple[tuple[int, bytes], ...]:
    """The RFC 6962 audit path (section 2.1.1) of the leaf at `index`: (side, hash beside the way), lowest first.

    Side 0: the hash stands to the left of what was computed so far, 1: to the right. So the path needs no index and
    no count, to which an RFC 6962 root does not commit. Raise ValueError for an index outside the tree.
    """
    if not 0 <= index < len(leaves):
        raise ValueError(f"a tree of {len(leaves)} leaves has no leaf {index}")
    path: list[tuple[int, bytes]] = []
    level = [sha256(b"\x00" + leaf) for leaf in leaves]
    while len(level) > 1:
        beside = index ^ 1
        # The last node of an odd level has nobody beside it: it goes up as it is.
        if beside < len(level):
            path.append((beside & 1, level[beside]))
        paired = [sha256(b"\x01" + level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level, index = paired, index // 2
    return tuple(path)
