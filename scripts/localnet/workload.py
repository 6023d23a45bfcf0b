"""What the transactions of a load are: number n of a workload is the same transaction whoever makes it.

So several processes can sign parts of one load, and the next run goes on where the last one ended.
"""

import hashlib
from typing import Literal, TypeAlias

import msgspec

from node.client import call, draft, sign
from node.keys import SigningKey
from node.ledger import Call, Transaction

SETUP_EXPIRES_MS = 30 * 60 * 1000
CURRENCY = "USD"
PRODUCT = "LOAD"
CLAIMS_ACCOUNT = "L-claims"
POLICIES = 8
PERIL = "minor_injury"
POLICY_DAYS = 100_000
LIMIT_CENTS = 1_000_000_00
CLAIMED_CENTS = 1_000_00


class Shape(msgspec.Struct, frozen=True):
    """What is sent: transactions a second for some seconds, their calls, and how many go into one request.

    `uetr`: each transfer names one of its own, which is a new key of the state. `reference_chars`: of each call.
    """

    rate: float
    seconds: float
    calls: int = 1
    transactions_per_request: int = 50
    mode: Literal["each", "atomic"] = "each"
    uetr: bool = False
    reference_chars: int = 0

    @property
    def requests(self) -> int:
        """How many requests that makes."""
        return max(1, round(self.rate * self.seconds / self.transactions_per_request))

    @property
    def interval_s(self) -> float:
        """The time between two requests."""
        return self.transactions_per_request / self.rate


class Seeds(msgspec.Struct, frozen=True):
    """Whose keys sign, and for which network. Never written to a disk."""

    network: str
    seeds: dict[str, bytes]

    def keys(self) -> dict[str, SigningKey]:
        """The signing keys, by principal."""
        return {principal: SigningKey(seed) for principal, seed in self.seeds.items()}


class Payments(msgspec.Struct, frozen=True, tag="payments"):
    """Transfers among the load accounts `L-<member>-<number>` of `members`, sent by `senders` in turn.

    No two of the next `accounts_per_member` / 2 transactions of one sender share an account.
    """

    members: tuple[str, ...]
    senders: tuple[str, ...]
    tag: str
    accounts_per_member: int

    def transaction(
        self, number: int, shape: Shape, network: str, keys: dict[str, SigningKey], expires_in_ms: int
    ) -> Transaction:
        """The transaction of that number, signed."""
        sender = self.senders[number % len(self.senders)]
        turn = number // len(self.senders)
        calls = [self._transfer(sender, number, turn * shape.calls + place, shape) for place in range(shape.calls)]
        body = draft(
            network,
            sender,
            calls,
            request_id=f"load-{self.tag}-{number}",
            expires_in_ms=expires_in_ms,
            mode=shape.mode,
        )
        return sign(body, [keys[sender]])

    def _transfer(self, sender: str, number: int, walk: int, shape: Shape) -> Call:
        other = self.members[(number + walk + 1) % len(self.members)]
        args: dict[str, object] = {
            "debtor": load_account(sender, 2 * walk % self.accounts_per_member),
            "creditor": load_account(other, (2 * walk + 1) % self.accounts_per_member),
            "amount": 1,
        }
        if shape.uetr:
            args["uetr"] = uetr_of(f"{self.tag}/{number}/{walk}")
        if shape.reference_chars:
            args["reference"] = f"remittance {number}/{walk} ".ljust(shape.reference_chars, ".")[
                : shape.reference_chars
            ]
        return call("settlement.transfer", args)


class ClaimWork(msgspec.Struct, frozen=True, tag="claims"):
    """Claims of one insurer from notice to payout, each in one atomic transaction of five calls."""

    insurer: str
    tag: str

    def transaction(
        self, number: int, shape: Shape, network: str, keys: dict[str, SigningKey], expires_in_ms: int
    ) -> Transaction:
        """The transaction of that number, signed."""
        claim = f"{self.tag}-{number}"
        day = number // POLICIES % POLICY_DAYS
        calls = [
            call(
                "claims.notify",
                {
                    "claim": claim,
                    "policy": policy_of(self.tag, number),
                    "peril": PERIL,
                    "loss_day": day,
                    "notice_day": day,
                    "claimed": CLAIMED_CENTS,
                },
            ),
            call("claims.set_reserve", {"claim": claim, "reserve": CLAIMED_CENTS}),
            call("claims.assess", {"claim": claim, "assessed": CLAIMED_CENTS}),
            call("claims.approve", {"claim": claim}),
            call("claims.payout", {"claim": claim, "uetr": uetr_of(claim)}),
        ]
        body = draft(
            network,
            self.insurer,
            calls,
            request_id=f"load-{self.tag}-{number}",
            expires_in_ms=expires_in_ms,
            mode="atomic",
        )
        return sign(body, [keys[self.insurer]])


class Questions(msgspec.Struct, frozen=True, tag="questions"):
    """Queries for the balances of load accounts, one after the other."""

    members: tuple[str, ...]
    accounts_per_member: int

    def address(self, number: int) -> str:
        """The path of the question of that number."""
        member = self.members[number % len(self.members)]
        account = load_account(member, number // len(self.members) % self.accounts_per_member)
        return f"/v1/query/settlement/balance?account={account}"


Workload: TypeAlias = Payments | ClaimWork | Questions


def load_account(owner: str, number: int) -> str:
    """An account of the load."""
    return f"L-{owner}-{number}"


def policy_of(tag: str, number: int) -> str:
    """The policy under which the claim of that number falls."""
    return f"{tag}-{number % POLICIES}"


def uetr_of(name: str) -> str:
    """A UUID of version 4 that is the same whenever the name is."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"
