"""Banks' systems that submit payments: to several nodes, repeatedly, wrongly, too late; and what they were told.

Every answer "accepted" is kept as a promise and called in at the end of the run.
"""

import uuid
from typing import TYPE_CHECKING, NamedTuple

from node.client.answers import Submission
from node.errors import HansaError
from node.ledger import Call, Transaction
from tests.simulation.nodes.founding import ACCOUNTS, DESK, FUNDS, key_of, transaction
from tests.simulation.nodes.timeline import START_MS

if TYPE_CHECKING:
    from tests.simulation.nodes.host import Host, Process
    from tests.simulation.nodes.world import NodeWorld

FAR_MS = 60 * 60 * 1000
BUNDLE_MAX = 6


Answers = list[Submission | HansaError]


class Promise(NamedTuple):
    """A node told a client that it has the transaction; void when that node's disk is replaced."""

    transaction: Transaction
    host: "Host"
    generation: int

    @property
    def stands(self) -> bool:
        """Whether the node that gave it still has the disk it had."""
        return self.host.generation == self.generation


class Clients:
    """Submits until `stop`; `promises` by transaction id, in the order in which they were given."""

    def __init__(self, world: "NodeWorld") -> None:
        self._world = world
        self._number = 0
        self._recent: list[Transaction] = []
        self._stopped = False
        self.promises: dict[bytes, list[Promise]] = {}

    def begin(self) -> None:
        """The first client comes soon."""
        self._world.timeline.after(self._world.timeline.pick(0, 500_000), self._come)

    def stop(self) -> None:
        """Nobody submits anything new."""
        self._stopped = True

    def _come(self) -> None:
        if self._stopped:
            return
        timeline = self._world.timeline
        every_us = self._world.plan.request_every_us
        ticket = timeline.pick(0, 100)
        if ticket < 55 or not self._recent:
            self._submit([self._payment()])
        elif ticket < 70:
            self._submit([self._payment() for _ in range(timeline.pick(2, BUNDLE_MAX))])
        elif ticket < 90:
            self._again()
        else:
            self._conflict()
        timeline.after(timeline.pick(every_us // 4, 2 * every_us), self._come)

    # --- what is submitted -------------------------------------------------------------------------------

    def good_payment(self, debtor: str = "A-0", request_id: str | None = None) -> Transaction:
        """A payment of 1 from `debtor`, good for an hour."""
        self._number += 1
        creditor = next(account for account in ACCOUNTS if account != debtor)
        calls = [self._transfer(debtor, creditor, 1)]
        expires_at_ms = START_MS + self._world.timeline.now_us // 1000 + FAR_MS
        sender = ACCOUNTS[debtor]
        keys = [key_of(sender, number) for number in range(2 if sender == DESK else 1)]
        network = self._world.founding.network
        return transaction(network, sender, request_id or f"g-{self._number}", calls, expires_at_ms, keys)

    def _payment(self, request_id: str | None = None) -> Transaction:
        """A payment of any owner: mostly good, sometimes more than there is, sometimes about to expire."""
        world, timeline = self._world, self._world.timeline
        self._number += 1
        accounts = list(ACCOUNTS)
        debtor = accounts[timeline.pick(0, len(accounts))]
        creditor = accounts[(accounts.index(debtor) + timeline.pick(1, len(accounts))) % len(accounts)]
        amount = 2 * len(accounts) * FUNDS if timeline.chance(80) else timeline.pick(1, FUNDS)
        if amount > FUNDS:
            world.faults["overdraft"] += 1
        expires_at_ms = START_MS + timeline.now_us // 1000 + FAR_MS
        if timeline.chance(80):
            world.faults["short-lived"] += 1
            expires_at_ms += timeline.pick(50, 3_000) - FAR_MS
        calls = [self._transfer(debtor, creditor, amount)]
        if timeline.chance(150):
            calls.append(self._transfer(debtor, creditor, 1))
        sender = ACCOUNTS[debtor]
        keys = [key_of(sender)]
        if sender == DESK:
            left_out = timeline.pick(0, 4)  # 3: all three sign
            keys = [key_of(DESK, number) for number in range(3) if number != left_out]
        made = transaction(
            world.founding.network, sender, request_id or f"r-{self._number}", calls, expires_at_ms, keys
        )
        self._recent = [*self._recent[-7:], made]
        return made

    def _transfer(self, debtor: str, creditor: str, amount: int) -> Call:
        self._number += 1
        uetr = str(uuid.UUID(int=self._number, version=4))
        args = {"debtor": debtor, "creditor": creditor, "amount": amount, "uetr": uetr}
        return Call("settlement", "transfer", args)

    def _again(self) -> None:
        """The same transaction to another node, or several nodes at once."""
        timeline = self._world.timeline
        chosen = self._recent[timeline.pick(0, len(self._recent))]
        self._world.faults["submitted again"] += 1
        for _ in range(timeline.pick(1, 4)):
            self._submit([chosen])

    def _conflict(self) -> None:
        """Two different bodies under one request id, at two nodes."""
        timeline = self._world.timeline
        first = self._payment()
        second = self._payment(first.body.request_id)
        self._world.faults["conflicting request"] += 1
        self._submit([first])
        timeline.after(timeline.pick(0, 20_000), self._submit, [second])

    # --- what the answers are ----------------------------------------------------------------------------

    def _submit(self, transactions: list[Transaction]) -> None:
        """The transactions go to some node whose door is open."""
        world = self._world
        hosts = [host for host in world.hosts if host.door is not None]
        if not hosts:
            return
        withholding = [host for host in hosts if host.id in world.network.withholding]
        host = hosts[world.timeline.pick(0, len(hosts))]
        if withholding and world.timeline.chance(700):
            host = withholding[0]
        self.submit_at(host, transactions)

    def submit_at(self, host: "Host", transactions: list[Transaction]) -> "Answers":
        """The transactions go to `host`, whose door is open; the answers come later."""
        process = host.process
        assert process is not None
        answers: Answers = []
        # The service is asked inside the node's own process, as its HTTP server does.
        process.loop.call_soon(self._begin, host, process, transactions, answers)
        return answers

    def _begin(self, host: "Host", process: "Process", transactions: list[Transaction], answers: "Answers") -> None:
        asking = self._ask(host, process, host.generation, transactions, answers)
        process.asked.append(process.loop.create_task(asking))

    async def _ask(
        self,
        host: "Host",
        process: "Process",
        generation: int,
        transactions: list[Transaction],
        told: "Answers",
    ) -> None:
        assert process.door is not None
        try:
            answers = await process.door.service.submit([item.data for item in transactions])
        except HansaError as error:
            self._world.reached[f"a submission failed: {error.code}"] += 1
            return
        told.extend(answers)
        for item, answer in zip(transactions, answers, strict=True):
            self._on_answer(host, generation, item, answer)

    def _on_answer(self, host: "Host", generation: int, item: Transaction, answer: Submission | HansaError) -> None:
        world = self._world
        if isinstance(answer, HansaError):
            world.reached[f"refused: {answer.code}"] += 1
            return
        tx_id = item.tx_id
        world.note(host, f"accepts {tx_id.hex()[:8]} ({answer.status}{', known' * answer.duplicate})")
        contents = host.disk.contents
        kept = any(contents.get(letter + tx_id) is not None for letter in (b"p", b"x", b"f"))
        world.rules.require("a promise is durable", kept, host.id, tx_id.hex())
        if answer.status == "pending" and answer.duplicate:
            world.reached["a known transaction promised"] += 1
        self.promises.setdefault(tx_id, []).append(Promise(item, host, generation))
