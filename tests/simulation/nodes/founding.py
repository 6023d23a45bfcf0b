"""What every run begins with, made once a process: keys, a network's definition, and the disk of a new member.

Signatures are keyed hashes: 66 microseconds for each verification would be most of a run.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from consensus.messages import Certificate, VoteKind, vote_bytes
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import MemberConfig, NetworkConfig, Parameters, PrincipalConfig
from node.executor import Executor
from node.ledger import Body, Call, KeySignature, Transaction, transaction_signing_bytes
from node.store import Store
from tests.simulation.nodes.disk import Contents, Disk, MemoryDatabase
from tests.simulation.nodes.timeline import START_MS

ISSUER = "bank-0"
DESK = "bank-0/desk"
"""Two of its three keys sign."""
DAY_MS = 24 * 60 * 60 * 1000
FUNDS = 1_000
ACCOUNTS = {"A-0": "bank-0", "A-1": "bank-1", "A-2": "bank-2", "A-3": DESK}
"""Account to owner; each begins with FUNDS."""
DATA = Path("/simulated")


def sign(key: bytes, data: bytes) -> bytes:
    """The signature of the owner of `key` over `data` (64 bytes); here whoever knows the key could make it."""
    return hashlib.blake2b(data, key=key, digest_size=64).digest()


def verify(key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the owner of `key` signed `data`."""
    return len(key) == 32 and signature == sign(key, data)


def signer(key: bytes) -> Callable[[bytes], bytes]:
    """The signing function of one key."""
    return functools.partial(sign, key)


def key_of(owner: str, number: int = 0) -> bytes:
    """A key of a member or principal."""
    return hashlib.sha256(f"{owner}#{number}".encode()).digest()


def next_key(member: str) -> bytes:
    """The voting key to which the member may rotate; it lies beside the first one on its machine."""
    return key_of(member, 18)


def next_tls_key(member: str) -> bytes:
    """The key of its links to which the member may rotate; it lies on its machine too."""
    return key_of(member, 19)


class Shape(NamedTuple):
    """The constants in which one network differs from another."""

    n: int
    base_timeout_ms: int
    timeout_cap_ms: int
    status_interval_ms: int
    rotation_heights: int
    empty_block_interval_ms: int
    drift_ms: int
    block_transactions_max: int


def network_of(shape: Shape) -> NetworkConfig:
    """The definition of a network of that shape."""
    members = tuple(
        MemberConfig(
            f"bank-{index}",
            "validator",
            f"127.0.0.1:{7600 + index}",
            key_of(f"bank-{index}", 8),
            key_of(f"bank-{index}", 9),
        )
        for index in range(shape.n)
    )
    return NetworkConfig(
        name="sim",
        members=members,
        principals=(
            *[PrincipalConfig(member.id, (key_of(member.id),), 1) for member in members],
            PrincipalConfig(DESK, tuple(key_of(DESK, number) for number in range(3)), 2),
        ),
        parameters=Parameters(
            state_tree_bits=4,
            rotation_heights=shape.rotation_heights,
            base_timeout_ms=shape.base_timeout_ms,
            timeout_cap_ms=shape.timeout_cap_ms,
            status_interval_ms=shape.status_interval_ms,
            empty_block_interval_ms=shape.empty_block_interval_ms,
            drift_ms=shape.drift_ms,
            block_transactions_max=shape.block_transactions_max,
            censorship_blocks=5,
        ),
        contracts={"settlement": {"currencies": [{"code": "USD", "exponent": 2, "issuer": ISSUER}]}},
    )


def transaction(
    network: NetworkConfig,
    sender: str,
    request_id: str,
    calls: Sequence[Call],
    expires_at_ms: int,
    keys: Sequence[bytes],
) -> Transaction:
    """A transaction signed with `keys`."""
    body = Body(network.network_id, sender, request_id, expires_at_ms, "atomic", tuple(calls))
    unsigned = Transaction.assemble(body, [KeySignature(key, bytes(64)) for key in keys])
    message = transaction_signing_bytes(unsigned.body_bytes)
    return Transaction.assemble(body, [KeySignature(key, sign(key, message)) for key in keys])


def certificate_of(network: NetworkConfig, height: int, digest: bytes) -> Certificate:
    """A quorum of commits in view 0."""
    message = vote_bytes(network.network_id, VoteKind.COMMIT, 0, height, digest)
    quorum = network.validators.quorum
    signed = tuple((index, sign(network.validators.key(index), message)) for index in range(quorum))
    return Certificate(VoteKind.COMMIT, 0, height, digest, signed)


class Founding(NamedTuple):
    """A network and what lies on a new member's disk: genesis, and block 1, which funds the accounts."""

    network: NetworkConfig
    contents: Contents


@functools.cache
def founding_of(shape: Shape) -> Founding:
    """The founding of a network of that shape."""
    network = network_of(shape)
    disk = Disk(Contents(), lambda rows: None, lambda: None)
    store = Store(DATA, network.network_id, network.genesis_hash, open_database=lambda _: MemoryDatabase(disk))
    executor = Executor(network, Engine(CONTRACTS), Membership)
    store.initialise(executor.genesis(), never_voted=True)
    executor.open(store.snapshot())
    calls: dict[str, list[Call]] = {}
    for account, owner in ACCOUNTS.items():
        opening = Call("settlement", "open_account", {"account": account, "owner": owner, "currency": "USD"})
        calls.setdefault(owner.partition("/")[0], []).append(opening)
    # The issuer comes last: by then all accounts are there.
    issuing = calls.pop(ISSUER)
    issuing += [Call("settlement", "issue", {"account": account, "amount": FUNDS}) for account in ACCOUNTS]
    calls[ISSUER] = issuing
    expires_at_ms = START_MS + DAY_MS - 2_000
    transactions = [
        transaction(network, sender, "founding", items, expires_at_ms, [key_of(sender)])
        for sender, items in calls.items()
    ]
    executed = executor.build(START_MS - 1_000, network.members[0].id, transactions)
    assert executed is not None
    certificate = certificate_of(network, 1, executed.digest)
    store.apply(executed, certificate, start_view=0)
    outcomes = [store.receipt(1, position) for position in range(len(transactions))]
    assert {call.code for receipt in outcomes for call in receipt.calls} == {"ok"}, outcomes
    return Founding(network, disk.contents)
