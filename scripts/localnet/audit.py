"""Reads the ledger back through its queries and compares it with what plain loops expect."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from node.client import AsyncClient
from scripts.localnet.replay import Replay

PAGE = 500


class Holding(msgspec.Struct, frozen=True):
    """What the accounts of one principal hold: currency -> minor units."""

    accounts: int
    balances: dict[str, int]


class Audit(msgspec.Struct, frozen=True):
    """What the ledger says. `problems` are the sentences that should not be there."""

    holdings: dict[str, Holding]
    supplies: dict[str, int]
    payouts: dict[str, int]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems


async def audit(
    clients: Mapping[str, AsyncClient],
    principals: Sequence[str],
    currencies: Sequence[str],
    replays: Sequence[Replay],
) -> Audit:
    """The balances of all accounts, compared with supply and with the plain loops of `replays`.

    `clients` are the nodes by member; a principal's accounts are read at its own member's node.
    """
    problems: list[str] = []
    balances: dict[str, tuple[str, int]] = {}
    holdings = {}
    read = [_balances(clients[principal.partition("/")[0]], principal) for principal in principals]
    for principal, found in zip(principals, await asyncio.gather(*read), strict=True):
        balances |= found
        sums: dict[str, int] = {}
        for currency, balance in found.values():
            sums[currency] = sums.get(currency, 0) + balance
        holdings[principal] = Holding(len(found), sums)
    any_client = next(iter(clients.values()))
    supplies = {}
    for currency in currencies:
        supply = (await any_client.query("settlement.supply", {"currency": currency})).value
        supplies[currency] = supply["issued"] - supply["redeemed"]
        held = sum(holding.balances.get(currency, 0) for holding in holdings.values())
        if held != supplies[currency]:
            problems.append(f"{currency}: accounts hold {held}, but issued - redeemed is {supplies[currency]}")
    payouts = {}
    for replay in replays:
        for account, expected in replay.balances.items():
            if balances.get(account, ("", -1))[1] != expected:
                problems.append(f"{account}: holds {balances.get(account)}, expected {expected}")
        for product, expected in replay.payouts.items():
            payouts[product] = (await any_client.query("claims.total", {"product": product})).value["paid"]
            if payouts[product] != expected:
                problems.append(f"{product}: paid {payouts[product]}, expected {expected}")
    return Audit(holdings, supplies, payouts, tuple(problems[:20]))


async def _balances(client: AsyncClient, owner: str) -> dict[str, tuple[str, int]]:
    """Account -> (currency, balance) of all accounts of `owner`."""
    found: dict[str, tuple[str, int]] = {}
    after: str | None = None
    while True:
        args = {"owner": owner, "limit": PAGE} | ({} if after is None else {"after": after})
        page = (await client.query("settlement.accounts_of", args)).value
        found |= {row["account"]: (row["currency"], row["balance"]) for row in page}
        if len(page) < PAGE:
            return found
        after = page[-1]["account"]


@asynccontextmanager
async def node_clients(urls: Sequence[str]) -> AsyncIterator[list[AsyncClient]]:
    """One client a node, each of which goes on with the other nodes when its own is down or busy."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(AsyncClient([*urls[place:], *urls[:place]], patience_s=60.0))
            for place in range(len(urls))
        ]
