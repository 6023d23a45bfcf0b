"""The transfers of the data as work for the ledger, and what a plain loop over them expects.

Node `i` of the data is account `<prefix>-i` at member i modulo n, in USD, owned by the member's root principal.
Bundles of different senders may be decided in any order, so each account is funded with the greater of its opening
balance in the data and all that it will ever pay: no order of the transfers can overdraw it, and every final
balance is known beforehand.
"""

from collections.abc import Sequence

import msgspec

from scripts.localnet.datasets import Transfer
from scripts.localnet.plan import ExpectedCall, Group

CURRENCY = "USD"


class AccountBook(msgspec.Struct, frozen=True):
    """What the plain loop expects: account -> (owner, funding, final balance), all in cents."""

    accounts: dict[str, tuple[str, int, int]]
    refused: int

    @property
    def funded(self) -> int:
        """What is issued in all."""
        return sum(funding for _, funding, _ in self.accounts.values())


class Transfers:
    """Accounts and transfers at `members`. `prefix` keeps the accounts of two data sets apart."""

    def __init__(
        self, transfers: Sequence[Transfer], openings: dict[int, int], members: Sequence[str], prefix: str
    ) -> None:
        self._transfers = transfers
        self._openings = openings
        self._members = members
        self._prefix = prefix

    def account(self, node: int) -> str:
        """The account of a node of the data."""
        return f"{self._prefix}-{node}"

    def owner(self, node: int) -> str:
        """The member that keeps it."""
        return self._members[node % len(self._members)]

    def expected(self) -> AccountBook:
        """The plain loop: no ledger, only sums."""
        paid: dict[int, int] = {}
        received: dict[int, int] = {}
        refused = 0
        for transfer in self._transfers:
            paid.setdefault(transfer.source, 0)
            paid.setdefault(transfer.target, 0)
            if transfer.source == transfer.target:
                refused += 1
                continue
            paid[transfer.source] += transfer.cents
            received[transfer.target] = received.get(transfer.target, 0) + transfer.cents
        accounts = {}
        for node in sorted(paid):
            funding = max(self._openings.get(node, 0), paid[node])
            final = funding - paid[node] + received.get(node, 0)
            accounts[self.account(node)] = (self.owner(node), funding, final)
        return AccountBook(accounts, refused)

    def openings(self, book: AccountBook) -> list[Group]:
        """Every account is opened by its owner."""
        return [
            Group(owner, _call("open_account", account=account, owner=owner, currency=CURRENCY))
            for account, (owner, _, _) in book.accounts.items()
        ]

    def fundings(self, book: AccountBook, issuer: str) -> list[Group]:
        """The issuer puts on every account what it needs; an account that needs nothing gets nothing."""
        return [
            Group(issuer, _call("issue", account=account, amount=funding, reference="opening balance"))
            for account, (_, funding, _) in book.accounts.items()
            if funding
        ]

    def payments(self) -> list[Group]:
        """The transfers in their order; one from an account to itself has to be refused."""
        return [
            Group(
                self.owner(transfer.source),
                _call(
                    "transfer",
                    "same_account" if transfer.source == transfer.target else "ok",
                    debtor=self.account(transfer.source),
                    creditor=self.account(transfer.target),
                    amount=transfer.cents,
                    reference=f"day {transfer.day} row {transfer.row}",
                ),
            )
            for transfer in self._transfers
        ]


def _call(method: str, code: str = "ok", **args: str | int) -> tuple[ExpectedCall, ...]:
    return (ExpectedCall("settlement", method, args, code),)
