"""A steady load that remembers what it was promised, and the comparison of every promise with the ledger.

A transaction is promised when a node answered that it took it. From then on it has exactly one fate: it lies in
one block, the same at every node, or a block's time is past its expiry and it lies in none.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from consensus.codec import encode
from node.client.answers import BatchAnswer, BlockAnswer, Fate
from scripts.localnet.generator import (
    ACCOUNTS_PER_MEMBER,
    FUNDING_CENTS,
    SETUP_EXPIRES_MS,
    Traffic,
    load_account,
)
from scripts.localnet.layout import TestnetError

PER_REQUEST = 5
REQUEST_TIMEOUT_S = 5.0
AGAIN_SHARE = 0.2
"""So many of the requests are sent a second time, to a node drawn anew, within AGAIN_WITHIN_S."""
AGAIN_WITHIN_S = 2.0
SHORT_SHARE = 0.1
"""So many of the transactions expire soon: some of them while no block can be made."""
SHORT_EXPIRES_MS = 15_000
FATES_ASKED_MAX = 40
IN_FLIGHT_MAX = 300
PROBLEMS_MAX = 10


class Promise(msgspec.Struct):
    """A transaction that was signed; `taken_by` are the nodes that promised it."""

    expires_at_ms: int
    taken_by: list[str] = []


class Fates(msgspec.Struct, frozen=True):
    """How the promises of a schedule were kept. `problems` are the sentences that should not be there."""

    accepted: int
    final: int
    expired: int
    unanswered: int
    problems: tuple[str, ...] = ()


class SteadyLoad:
    """Sends signed transfers to nodes drawn by chance, down or not, and keeps what they promised."""

    def __init__(
        self, http: httpx.AsyncClient, traffic: Traffic, apis: Mapping[str, str], chance: random.Random
    ) -> None:
        """`apis` are the nodes' URLs by member."""
        self._http = http
        self._traffic = traffic
        self._apis = apis
        self._chance = chance
        self.promises: dict[str, Promise] = {}
        self.sent = 0
        self.refused: Counter[str] = Counter()

    async def run(self, rate: float) -> None:
        """Send until cancelled, `rate` transactions a second whether or not they are answered."""
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            in_flight: set[asyncio.Task[None]] = set()
            while True:
                if len(in_flight) < IN_FLIGHT_MAX:
                    task = group.create_task(self._send())
                    in_flight.add(task)
                    task.add_done_callback(in_flight.discard)
                due += PER_REQUEST / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _send(self) -> None:
        chance = self._chance
        signed = []
        for _ in range(PER_REQUEST):
            expires_in_ms = SHORT_EXPIRES_MS if chance.random() < SHORT_SHARE else SETUP_EXPIRES_MS
            signed.append(self._traffic.signed(expires_in_ms=expires_in_ms))
        ids = [transaction.tx_id.hex() for transaction in signed]
        for tx_id, transaction in zip(ids, signed, strict=True):
            self.promises[tx_id] = Promise(transaction.body.expires_at_ms)
        self.sent += len(ids)
        body = encode(tuple(transaction.data for transaction in signed))
        again, pause_s = chance.random() < AGAIN_SHARE, chance.uniform(0.0, AGAIN_WITHIN_S)
        first, second = (chance.choice(sorted(self._apis)) for _ in range(2))
        await self._post(first, body, ids)
        if again:
            await asyncio.sleep(pause_s)
            await self._post(second, body, ids)

    async def _post(self, member: str, body: bytes, ids: Sequence[str]) -> None:
        try:
            response = await self._http.post(
                f"{self._apis[member]}/v1/transactions",
                content=body,
                headers={"content-type": "application/msgpack"},
                timeout=REQUEST_TIMEOUT_S,
            )
            answer = msgspec.json.decode(response.content, type=BatchAnswer)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self.refused[type(error).__name__] += len(ids)
            return
        for tx_id, result in zip(ids, answer.results, strict=True):
            if result.error is None:
                self.promises[tx_id].taken_by.append(member)
            else:
                self.refused[result.error.code] += 1


class Book:
    """The ledger of one network as its blocks tell it: where each transaction lies, what each account holds."""

    def __init__(self, http: httpx.AsyncClient, members: Sequence[str]) -> None:
        self._http = http
        self.height = 0
        self.time_ms = 0
        self.places: dict[str, int] = {}
        self.problems: list[str] = []
        accounts = [load_account(member, n) for member in members for n in range(ACCOUNTS_PER_MEMBER)]
        self._balances = dict.fromkeys(accounts, FUNDING_CENTS)

    async def read_on(self, api: str, up_to: int) -> None:
        """All blocks up to that height are read, from that node. Raise httpx.HTTPError when it does not answer."""
        while self.height < up_to:
            response = await self._http.get(f"{api}/v1/blocks/{self.height + 1}")
            response.raise_for_status()
            self._take(msgspec.json.decode(response.content, type=BlockAnswer))

    def _take(self, block: BlockAnswer) -> None:
        for transaction in block.transactions:
            first = self.places.setdefault(transaction.tx_id, block.height)
            if first != block.height:
                self.problems.append(f"{transaction.tx_id} lies in block {first} and again in {block.height}")
            for call, receipt in zip(transaction.content.calls, transaction.receipts, strict=True):
                if call.method == "transfer" and receipt.code == "ok":
                    self._balances[call.args["debtor"]] -= call.args["amount"]
                    self._balances[call.args["creditor"]] += call.args["amount"]
        self.height, self.time_ms = block.height, block.header.time_ms

    def open(self, promises: Mapping[str, Promise]) -> list[str]:
        """The promised transactions that have no fate yet."""
        return [
            tx_id
            for tx_id, promise in promises.items()
            if promise.taken_by and tx_id not in self.places and promise.expires_at_ms >= self.time_ms
        ]

    async def compare_balances(self, api: str) -> None:
        """What the node says that every account holds is what a plain loop over the blocks computes."""
        found: dict[str, int] = {}
        for owner in sorted({account.rpartition("-")[0].removeprefix("L-") for account in self._balances}):
            args = {"owner": owner, "limit": 500}
            response = await self._http.post(f"{api}/v1/query/settlement/accounts_of", json=args)
            response.raise_for_status()
            rows: list[dict[str, Any]] = response.json()["value"]
            found |= {row["account"]: row["balance"] for row in rows}
        for account, expected in self._balances.items():
            if found.get(account) != expected:
                self.problems.append(f"{account} holds {found.get(account)}, the blocks say {expected}")
        response = await self._http.post(f"{api}/v1/query/settlement/supply", json={"currency": "USD"})
        response.raise_for_status()
        supply = response.json()["value"]
        if sum(self._balances.values()) != supply["issued"] - supply["redeemed"]:
            self.problems.append(f"accounts hold {sum(self._balances.values())}, the supply is {supply}")


async def compare(
    http: httpx.AsyncClient, book: Book, load: SteadyLoad, apis: Mapping[str, str], forgot: Sequence[str]
) -> Fates:
    """Every promise of the load against the book, and some of them, expired ones first, against every node.

    `forgot`: members whose data was deleted; they need not know of what they took before.
    """
    accepted = {tx_id: promise for tx_id, promise in load.promises.items() if promise.taken_by}
    final = [tx_id for tx_id in accepted if tx_id in book.places]
    lost = book.open(accepted)
    expired = [tx_id for tx_id in accepted if tx_id not in book.places and tx_id not in set(lost)]
    problems = [*book.problems, *(f"{tx_id} was taken by {accepted[tx_id].taken_by} and is lost" for tx_id in lost)]
    for tx_id in [*expired[:FATES_ASKED_MAX], *final[:: max(1, len(final) // FATES_ASKED_MAX)]]:
        for member, api in apis.items():
            fate = await _fate(http, api, tx_id)
            if tx_id in book.places:
                good = (fate.status, fate.height) == ("final", book.places[tx_id])
            else:
                knows = member in accepted[tx_id].taken_by and member not in forgot
                good = fate.status == "expired" or (fate.status == "unknown" and not knows)
            if not good:
                where = f"final in {book.places[tx_id]}" if tx_id in book.places else "expired"
                problems.append(f"{tx_id} is {where}, but {member} says {fate.status} ({fate.height})")
    answered = len(load.promises) - len(accepted)
    return Fates(len(accepted), len(final), len(expired), answered, tuple(problems[:PROBLEMS_MAX]))


async def _fate(http: httpx.AsyncClient, api: str, tx_id: str) -> Fate:
    response = await http.get(f"{api}/v1/transactions/{tx_id}")
    if response.status_code == 404:
        return Fate(tx_id=tx_id, status="unknown")
    if response.status_code != 200:
        raise TestnetError(f"{api} answers {response.status_code} to a question for a fate", exit_code=1)
    return msgspec.json.decode(response.content, type=Fate)
