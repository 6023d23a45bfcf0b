"""What stands in a long chain: every transaction, request id and block time follows from its number alone.

Invariant: two processes with one plan and the same keys make the same transactions, so that one can sign what the
other executes. The chain is that of a network at work for some weeks under the default retention: accounts are
opened and funded all along, transfers run among those there are, most payments carry a UETR, which stays in the
state, and of the request ids as many as a day's are remembered while older ones are forgotten.
"""

import hashlib
import uuid
from collections.abc import Iterator

import msgspec

from node.config import Parameters
from node.ledger import Body, Call

BLOCK_TRANSACTIONS = 1_000
BLOCKS_MIN = 20
"""A short chain has smaller blocks, so that each tenth of it has two."""
EXPIRES_IN_MS = 10 * 60 * 1000
RETENTION_MS = Parameters().retention_ms
BITS_SMALL, BITS_LARGE, LARGE_KEYS = 16, 20, 250_000
"""Buckets of the state tree: 2^16 for a pilot, 2^20 where millions of keys are expected."""
FUNDING = 10**9
AMOUNT_MAX = 1_000
SEED_ACCOUNTS_PER_OWNER = 2
KEYS_MIN = 1_000
"""With fewer there would be hardly more accounts than those of the beginning."""


class Size(msgspec.Struct, frozen=True):
    """How long a chain: its transactions, of one call each, and the least number of state keys at its end."""

    transactions: int = 2_000_000
    keys: int = 1_000_000

    def __post_init__(self) -> None:
        """Raise ValueError for a size that the plan cannot meet: most keys come with a transaction of their own."""
        if not KEYS_MIN <= self.keys <= self.transactions:
            raise ValueError(f"a chain has at least {KEYS_MIN:,} keys, and no fewer transactions than keys")

    @property
    def block_transactions(self) -> int:
        """How many stand in each block but the last."""
        return min(BLOCK_TRANSACTIONS, max(1, self.transactions // BLOCKS_MIN))

    @property
    def blocks(self) -> int:
        """How many blocks hold them."""
        return -(-self.transactions // self.block_transactions)

    @property
    def accounts(self) -> int:
        """How many accounts are opened: two keys each, the account and its entry among its owner's."""
        return self.keys // 10

    @property
    def references(self) -> int:
        """How many transfers carry a UETR, about: a key each."""
        return self.keys * 3 // 4

    @property
    def interval_ms(self) -> int:
        """From block to block: so that a tenth of `keys` are request ids that are remembered still."""
        return (EXPIRES_IN_MS + RETENTION_MS) * self.block_transactions // (self.keys // 10)


def parameters(size: Size) -> Parameters:
    """Return the rules of a network for such a chain: the defaults, but for three.

    The block after the chain is the first of which nodes make a snapshot, the state tree is as wide as so many keys
    deserve, and an idle network makes no blocks, so that a target stands still while a member catches up with it.
    """
    bits = BITS_LARGE if size.keys >= LARGE_KEYS else BITS_SMALL
    return Parameters(
        state_tree_bits=bits, snapshot_blocks=size.blocks + 1, empty_block_interval_ms=24 * 60 * 60 * 1000
    )


class ChainPlan(msgspec.Struct, frozen=True):
    """A chain for one network. `owners` own the accounts and send the payments, `issuers` are (currency, issuer).

    The last block is of `end_ms`.
    """

    size: Size
    network: str
    owners: tuple[str, ...]
    issuers: tuple[tuple[str, str], ...]
    end_ms: int

    @property
    def senders(self) -> tuple[str, ...]:
        """Everybody who signs."""
        return tuple(dict.fromkeys([*self.owners, *(issuer for _, issuer in self.issuers)]))

    def time_ms(self, height: int) -> int:
        """Return the time of the block at `height` (1 … blocks)."""
        return self.end_ms - (self.size.blocks - height) * self.size.interval_ms

    def bodies(self, height: int) -> Iterator[Body]:
        """Yield the unsigned transactions of the block at `height`, in their order."""
        expires_at_ms = self.time_ms(height) + EXPIRES_IN_MS
        first = (height - 1) * self.size.block_transactions
        for number in range(first, min(first + self.size.block_transactions, self.size.transactions)):
            sender, call = self.payment(number)
            yield Body(self.network, sender, f"order-{number}", expires_at_ms, "atomic", (call,))

    def payment(self, number: int) -> tuple[str, Call]:
        """Return (sender, call) of the transaction `number`; numbers beyond the plan's give further transfers."""
        size, seeds = self.size, self._seeds
        if number < 2 * seeds:
            return self._found(number // 2, number % 2)
        place, later = number - 2 * seeds, size.accounts - seeds
        stride = (size.transactions - 2 * seeds) // later
        group, step = divmod(place, stride)
        if group < later and step < 2:
            return self._found(seeds + group, step)
        chance = hashlib.sha256(b"%d" % number).digest()
        transfers = size.transactions - 2 * size.accounts
        named = int.from_bytes(chance[:4], "big") * transfers < size.references << 32
        return self._transfer(number, seeds + min(group, later), chance, named)

    @property
    def _seeds(self) -> int:
        """So many accounts are there before the first transfer: some of each owner in each currency."""
        return len(self.owners) * len(self.issuers) * SEED_ACCOUNTS_PER_OWNER

    def _found(self, account: int, step: int) -> tuple[str, Call]:
        """The account is opened (step 0), then funded by its currency's issuer."""
        owner, (currency, issuer) = self._owner(account), self._issuer(account)
        if step == 0:
            args = {"account": _account(account), "owner": owner, "currency": currency}
            return owner, Call("settlement", "open_account", args)
        return issuer, Call("settlement", "issue", {"account": _account(account), "amount": FUNDING})

    def _transfer(self, number: int, funded: int, chance: bytes, named: bool) -> tuple[str, Call]:
        """A payment between two of the first `funded` accounts, which have one currency."""
        row = len(self.owners) * len(self.issuers)
        debtor = int.from_bytes(chance[4:8], "big") % funded
        currency = debtor // len(self.owners) % len(self.issuers)
        # Accounts stand in rows, one of each owner in each currency; nobody pays itself.
        rows = funded // row
        at = int.from_bytes(chance[8:12], "big") % (rows * len(self.owners))
        creditor = at // len(self.owners) * row + currency * len(self.owners) + at % len(self.owners)
        if creditor == debtor:
            creditor = (creditor + row) % (rows * row)
        args = {
            "debtor": _account(debtor),
            "creditor": _account(creditor),
            "amount": 1 + int.from_bytes(chance[12:14], "big") % AMOUNT_MAX,
            "reference": f"invoice {number}",
        }
        if named:
            args["uetr"] = str(uuid.UUID(bytes=chance[16:32], version=4))
        return self._owner(debtor), Call("settlement", "transfer", args)

    def _owner(self, account: int) -> str:
        return self.owners[account % len(self.owners)]

    def _issuer(self, account: int) -> tuple[str, str]:
        return self.issuers[account // len(self.owners) % len(self.issuers)]


def _account(number: int) -> str:
    return f"LC-{number}"
