"""The synchronous client."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from node.client import drafting, operations
from node.client.answers import (
    BackupStatus,
    BlockAnswer,
    ContractAnswer,
    Diagnosis,
    DryRun,
    EventPage,
    EvidenceItem,
    Fate,
    LedgerEvent,
    MemberStatus,
    NodeStatus,
    QueryAnswer,
    Submission,
    TransactionAnswer,
    TransactionPage,
)
from node.client.failover import (
    PATIENCE_S_DEFAULT,
    STREAM_SILENCE_S,
    TIMEOUT_S_DEFAULT,
    WAIT_SLICE_S,
    Attempts,
    EventLines,
    answer_failure,
    node_urls,
    timeout,
    trusted,
    unreachable,
)
from node.client.operations import Operation
from node.errors import ConfigError, HansaError
from node.ledger import Call, Transaction

T = TypeVar("T")


class Client:
    """A client of one network, by way of one or several of its nodes.

    A request goes to the node that answered last; when that one is down or busy, to the next, for at most
    `patience_s` seconds. Errors are HansaErrors with a code of the catalogue. Close it, or use it in `with`.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        sender: str | None = None,
        signers: Sequence[drafting.Signer] = (),
        network: str | None = None,
        timeout_s: float = TIMEOUT_S_DEFAULT,
        patience_s: float = PATIENCE_S_DEFAULT,
    ) -> None:
        """`sender` and `signers` are the defaults of the transactions made here; `network` is asked for if None."""
        self._urls = node_urls(urls)
        self._sender = sender
        self._signers = tuple(signers)
        self._network = network
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._preferred = 0
        # The environment's proxies are not for a ledger's own node.
        self._http = httpx.Client(trust_env=False, verify=trusted(self._urls))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """All connections are closed."""
        self._http.close()

    # --- transactions ---

    def network(self) -> str:
        """The network id; asked for once, unless it was given."""
        if self._network is None:
            self._network = self.status().network
        return self._network

    def transaction(
        self,
        calls: Iterable[Call],
        *,
        sender: str | None = None,
        signers: Sequence[drafting.Signer] | None = None,
        request_id: str | None = None,
        expires_in_ms: int = drafting.EXPIRES_IN_MS_DEFAULT,
        mode: Literal["atomic", "each"] = "atomic",
    ) -> Transaction:
        """A signed transaction of `calls`, not yet submitted."""
        who = sender or self._sender
        if who is None:
            raise ConfigError("invalid_usage", "a transaction needs a sender")
        body = drafting.draft(
            self.network(), who, calls, request_id=request_id, expires_in_ms=expires_in_ms, mode=mode
        )
        return drafting.sign(body, self._signers if signers is None else signers)

    def call(
        self, method: str, args: Mapping[str, Any], *, request_id: str | None = None, timeout_s: float = 30.0
    ) -> Fate:
        """Make, sign and submit one call of `contract.method`, and wait for its fate."""
        transaction = self.transaction([drafting.call(method, args)], request_id=request_id)
        return self.submit_and_wait(transaction, timeout_s)

    def submit(self, transaction: Transaction | bytes) -> Submission:
        """The node has taken the transaction; raise RejectedTransaction or Unavailable otherwise."""
        return self._run(operations.submit(_data(transaction)))

    def submit_many(self, transactions: Sequence[Transaction | bytes]) -> list[Submission | HansaError]:
        """An outcome for each of at most 5,000 transactions, in order; Unavailable when all must come again."""
        return self._run(operations.submit_many([_data(item) for item in transactions]))

    def submit_and_wait(self, transaction: Transaction | bytes, timeout_s: float = 30.0) -> Fate:
        """Its fate once it is no longer pending, or as it is after `timeout_s`.

        A wait that outlives its node goes on at the next one, which is given the same transaction again.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            fate = self._run(operations.submit_and_wait(_data(transaction), min(left_s, WAIT_SLICE_S)))
            if fate.status != "pending" or left_s <= WAIT_SLICE_S:
                return fate

    def wait(self, tx_id: str, timeout_s: float = 30.0) -> TransactionAnswer:
        """Its fate once it is no longer pending, or as it is after `timeout_s`; NotFound when no node knows it."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            answer = self._run(operations.transaction(tx_id, min(left_s, WAIT_SLICE_S)))
            if answer.status != "pending" or left_s <= WAIT_SLICE_S:
                return answer

    def fate(self, tx_id: str) -> TransactionAnswer:
        """What became of it so far, with its content; NotFound when the node does not know it."""
        return self._run(operations.transaction(tx_id, None))

    def transactions(self, limit: int = 50, before: str | None = None) -> TransactionPage:
        """Pending and recent transactions."""
        return self._run(operations.transactions(limit, before))

    def dry_run(self, transaction: Transaction | bytes) -> DryRun:
        """What it would do now; nothing is changed."""
        return self._run(operations.dry_run(_data(transaction)))

    # --- reading ---

    def query(
        self, name: str, args: Mapping[str, Any] | None = None, *, at_height: int | None = None
    ) -> QueryAnswer:
        """The answer of `contract.query` at the head, or after block `at_height`."""
        return self._run(operations.query(name, args or {}, at_height))

    def block(self, height: int | None = None) -> BlockAnswer:
        """The block at `height`, or the newest."""
        return self._run(operations.block(height))

    def event_page(
        self, after: str | None = None, *, contract: str | None = None, topic: str | None = None, limit: int = 100
    ) -> EventPage:
        """One page of events after the cursor, or from the first block."""
        return self._run(operations.events(after, contract, topic, limit))

    def events(
        self, after: str | None = None, *, contract: str | None = None, topic: str | None = None
    ) -> Iterator[LedgerEvent]:
        """Every event after the cursor (None: from now), for ever, each once and in order.

        It resumes by itself at this or another node. Keep an event's `cursor` to go on after a restart.
        """
        lines = EventLines(after)
        params = operations.event_params(None, contract, topic)
        attempts = Attempts(self._urls, self._preferred, self._patience_s)
        while True:
            headers = {"accept": "text/event-stream"} | ({"last-event-id": lines.cursor} if lines.cursor else {})
            error: HansaError
            try:
                with self._http.stream(
                    "GET",
                    f"{attempts.url}/v1/events",
                    params=params,
                    headers=headers,
                    timeout=timeout(STREAM_SILENCE_S),
                ) as response:
                    if response.status_code != 200:
                        response.read()
                        error, elsewhere = answer_failure(response)
                        if not elsewhere:
                            raise error
                    else:
                        attempts = Attempts(self._urls, attempts.place, self._patience_s)
                        self._preferred = attempts.place
                        for line in response.iter_lines():
                            event = lines.feed(line)
                            if event is not None:
                                yield event
                        error = unreachable(attempts.url, httpx.ReadError("the stream ended"))
            except httpx.TransportError as cause:
                error = unreachable(attempts.url, cause)
            time.sleep(attempts.failed(error))

    def status(self) -> NodeStatus:
        """Where the node stands."""
        return self._run(operations.status())

    def members(self) -> tuple[MemberStatus, ...]:
        """The members as the node last heard of them."""
        return self._run(operations.members())

    def contracts(self) -> tuple[ContractAnswer, ...]:
        """The active contracts with their schemas."""
        return self._run(operations.contracts())

    def why(self) -> Diagnosis:
        """Why blocks are made or not."""
        return self._run(operations.why())

    def evidence(self) -> tuple[EvidenceItem, ...]:
        """Proofs of misbehaviour that the node holds."""
        return self._run(operations.evidence())

    def prove_transaction(self, tx_id: str, *, checkpoint: int | None = None) -> bytes:
        """The evidence pack of a final transaction; `checkpoint` puts the headers up to that height in."""
        return self._run(operations.prove_transaction(tx_id, checkpoint))

    def prove_state(
        self,
        contract: str,
        field: str,
        *parts: str,
        at_height: int | None = None,
        checkpoint: int | None = None,
    ) -> bytes:
        """The evidence pack of what a contract keeps under a key, or of its absence, at the head or `at_height`."""
        return self._run(operations.prove_state(contract, field, parts, at_height, checkpoint))

    def prove_statement(
        self, account: str, from_height: int, to_height: int | None = None, *, checkpoint: int | None = None
    ) -> bytes:
        """The evidence pack of all entries of a settlement account between two heights (None: up to the head)."""
        return self._run(operations.prove_statement(account, from_height, to_height, checkpoint))

    def prove_not_executed(
        self, transaction: str | Transaction | bytes, *, at_height: int | None = None, checkpoint: int | None = None
    ) -> bytes:
        """The evidence pack that a transaction (its id, itself, or its bytes) was not and will not be executed."""
        given = transaction if isinstance(transaction, str) else _data(transaction)
        return self._run(operations.prove_not_executed(given, at_height, checkpoint))

    def backup_status(self) -> BackupStatus:
        """What the node could be backed up with."""
        return self._run(operations.backup_status())

    def make_backup_snapshot(self) -> BackupStatus:
        """The node makes a snapshot of its head for a backup, if it did not already."""
        return self._run(operations.make_backup_snapshot())

    def backup_blocks(self, first: int) -> bytes:
        """Some blocks from `first` on, as node.backup.pages has them."""
        return self._run(operations.backup_blocks(first))

    def diagnostics(self) -> bytes:
        """The node's diagnostics bundle, a zip."""
        return self._run(operations.diagnostics())

    def _run(self, operation: Operation[T]) -> T:
        attempts = Attempts(self._urls, self._preferred, self._patience_s)
        while True:
            try:
                response = self._http.request(
                    operation.method,
                    attempts.url + operation.path,
                    params=operation.params,
                    content=operation.body,
                    headers=operation.headers,
                    timeout=timeout(self._timeout_s, operation.wait_s),
                )
            except httpx.TransportError as cause:
                error: HansaError = unreachable(attempts.url, cause)
            else:
                if response.status_code < 400:
                    self._preferred = attempts.place
                    return operation.read(response.content)
                error, elsewhere = answer_failure(response)
                if not elsewhere:
                    raise error
            time.sleep(attempts.failed(error))


def _data(transaction: Transaction | bytes) -> bytes:
    return transaction if isinstance(transaction, bytes) else transaction.data
