"""The load accounts of a network and the transfers among them, one after the other or laid out for senders.

A load in open loop is signed beforehand and sent by processes of its own (open_loop.py); who needs a transaction
now and then takes it from here as well.
"""

import itertools
import secrets
import time
from collections.abc import Mapping

from node.client import AsyncClient
from node.errors import HansaError
from node.keys import SigningKey
from node.ledger import Transaction
from scripts.localnet.batches import BatchClient
from scripts.localnet.loading import Loader
from scripts.localnet.plan import ExpectedCall, Group, Phase, bundles
from scripts.localnet.workload import CURRENCY, SETUP_EXPIRES_MS, Payments, Questions, Seeds, Shape, load_account

__all__ = [
    "ACCOUNTS_PER_MEMBER",
    "SETUP_EXPIRES_MS",
    "Shape",
    "Traffic",
    "load_account",
    "one_at_a_time",
]

ACCOUNTS_PER_MEMBER = 50
FUNDING_CENTS = 10**12
ONE_CALL = Shape(rate=1.0, seconds=1.0)


class Traffic:
    """Transfers among load accounts, `L-<member>-<number>`, that have more money than any run moves."""

    def __init__(
        self,
        network: str,
        keys: Mapping[str, SigningKey],
        issuer: str,
        accounts_per_member: int = ACCOUNTS_PER_MEMBER,
    ) -> None:
        """`keys` are those of the members' root principals."""
        self._network = network
        self._keys = dict(keys)
        self._issuer = issuer
        members = tuple(sorted(keys))
        self._numbers = itertools.count()
        self.tag = secrets.token_hex(6)
        self.payments = Payments(members, members, self.tag, accounts_per_member)
        self.questions = Questions(members, accounts_per_member)

    @property
    def seeds(self) -> Seeds:
        """What a signing process needs to make transactions of this traffic."""
        return Seeds(self._network, {principal: key.seed for principal, key in self._keys.items()})

    def reserve(self, count: int) -> int:
        """The numbers of the next `count` transactions, from the returned one on, are nobody else's."""
        first = next(self._numbers)
        self._numbers = itertools.count(first + count)
        return first

    async def prepare(
        self, client: AsyncClient, batches: BatchClient, expires_in_ms: int = SETUP_EXPIRES_MS
    ) -> None:
        """The load accounts exist and are funded; raise RuntimeError when the network refuses them."""
        accounts = [
            (owner, load_account(owner, number))
            for owner in self.payments.members
            for number in range(await self._existing(client, owner), self.payments.accounts_per_member)
        ]
        opened = [
            _group(owner, "open_account", account=account, owner=owner, currency=CURRENCY)
            for owner, account in accounts
        ]
        funded = [_group(self._issuer, "issue", account=account, amount=FUNDING_CENTS) for _, account in accounts]
        phases = [
            Phase(what, bundles(groups, f"load-{self.tag}/{what}"))
            for what, groups in (("accounts", opened), ("money", funded))
        ]
        expires_at_ms = time.time_ns() // 1_000_000 + expires_in_ms
        loader = Loader(batches, self._network, self._keys, expires_at_ms)
        figures = await loader.run(phases, lambda what, calls: None)
        if not figures.ok:
            raise RuntimeError(f"the load accounts could not be made: {figures.surprises or figures.without_fate}")

    async def _existing(self, client: AsyncClient, owner: str) -> int:
        """How many load accounts the owner has; they were opened in the order of their numbers."""
        low, high = 0, self.payments.accounts_per_member
        while low < high:
            middle = (low + high) // 2
            if await _exists(client, load_account(owner, middle)):
                low = middle + 1
            else:
                high = middle
        return low

    def transaction(self) -> bytes:
        """The next signed transaction; the members take turns as its sender."""
        return self.signed().data

    def signed(self, expires_in_ms: int = SETUP_EXPIRES_MS) -> Transaction:
        """The next transaction, as a value."""
        return self.payments.transaction(self.reserve(1), ONE_CALL, self._network, self._keys, expires_in_ms)


async def one_at_a_time(client: AsyncClient, traffic: Traffic, count: int) -> list[float]:
    """Seconds from submit to final of `count` transactions, each sent when the one before was final."""
    latencies = []
    for _ in range(count):
        transaction = traffic.transaction()
        started = time.perf_counter()
        fate = await client.submit_and_wait(transaction)
        latencies.append(time.perf_counter() - started)
        if not fate.ok:
            raise RuntimeError(f"a transaction of an idle network is {fate.status}")
    return latencies


async def _exists(client: AsyncClient, account: str) -> bool:
    try:
        await client.query("settlement.balance", {"account": account})
    except HansaError as error:
        if error.code == "query_refused":
            return False
        raise
    return True


def _group(sender: str, method: str, **args: str | int) -> Group:
    return Group(sender, (ExpectedCall("settlement", method, args),))
