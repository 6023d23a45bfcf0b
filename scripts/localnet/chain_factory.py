"""A long chain in a data directory, made without a network: executed, certified and applied block by block.

Only consensus itself is left out: a block is what the shipped executor builds of transactions that their senders'
keys have signed, its certificate holds commit votes that a quorum's voting keys have signed, and the shipped store
applies it. So a node opens the directory as its own, and `hansa verify` finds nothing.

One process signs, this one executes. As far as the members remember they have voted at the head and nowhere above.
"""

import gc
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from consensus.effects import VoteRecord
from consensus.messages import Certificate, Vote, VoteKind, vote_bytes
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.membership import Membership
from node.client import sign
from node.config import NetworkConfig, load_network
from node.executor import Executor
from node.keys import SigningKey, find_passphrase, read_key_file
from node.ledger import Transaction
from node.runtime.process import GC_THRESHOLDS
from node.state import ExecutedBlock
from node.store import Store
from scripts.localnet.chain_plan import ChainPlan, Size
from scripts.localnet.founding import key_file
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.node_usage import disk_usage
from scripts.localnet.processes import usage
from scripts.localnet.replay import Cast

PARTS = 10
END_MS = 60_000
"""The last block was made so long ago: no clock of a voter lies behind it."""
SIGNATURE_BYTES_MAX = 64 * 1024 * 1024


class Part(msgspec.Struct, frozen=True):
    """A tenth of the chain: what had come together at its end, and what a transaction cost in it (microseconds).

    `execute_us`: decode, execute, state tree and roots; `apply_us`: the synced batch with its share of compaction.
    `cpu_us` is what this process took of the CPUs in all, in every thread: what else runs hardly shows in it.
    `written_bytes` are those that it had written to disk for a transaction, each as often as it was written.
    """

    transactions: int
    keys: int
    disk_mb: float
    execute_us: float
    apply_us: float
    total_us: float
    cpu_us: float
    written_bytes: float


class Built(msgspec.Struct, frozen=True):
    """The chain that was made. `waited_share` of `seconds` went by without a signed block at hand."""

    height: int
    transactions: int
    keys: int
    seconds: float
    transactions_per_s: float
    waited_share: float
    disk_mb: float
    bytes_per_transaction: float
    second_half_against_first: float
    parts: tuple[Part, ...]


def chain_plan(layout: Layout, size: Size) -> ChainPlan:
    """Return the plan of a chain for the founded network: all its principals own accounts."""
    network = load_network(layout.network_file)
    cast = Cast(tuple(member.id for member in network.members))
    owners = tuple(principal.id for principal in network.principals)
    end_ms = time.time_ns() // 1_000_000 - END_MS
    return ChainPlan(size, network.network_id, owners, tuple(cast.issuers.items()), end_ms)


def signing_keys(layout: Layout, principals: Sequence[str]) -> dict[str, SigningKey]:
    """Return the key that each of the principals signs with."""
    phrase = find_passphrase({}, layout.passphrase_file)
    return {
        name: read_key_file(key_file(layout, name), phrase, kind="principal", id=name)[1] for name in principals
    }


def build(layout: Layout, member: Member, plan: ChainPlan, console: Console) -> Built:
    """The data directory of `member`, in which genesis is, holds the chain; raise TestnetError when it cannot."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with _few_walks(), _signed_blocks(layout.directory, plan) as blocks, closing(_Chain(layout, member)) as chain:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("building the chain (transactions)", total=plan.size.transactions)
            began = time.perf_counter()
            for height, data in enumerate(blocks, 1):
                chain.add(plan.time_ms(height), data, last=height == plan.size.blocks)
                if height * PARTS // plan.size.blocks > (height - 1) * PARTS // plan.size.blocks:
                    chain.end_part()
                progress.advance(task, len(data))
        return chain.built(time.perf_counter() - began)


def spread_chain(source: Member, members: Sequence[Member]) -> None:
    """The stopped `members` hold the chain of the stopped `source`, each in files of its own."""
    for member in members:
        shutil.rmtree(member.data_dir)
        shutil.copytree(source.data_dir, member.data_dir)


class _Chain:
    """The chain as far as it was made, and what its parts have cost."""

    def __init__(self, layout: Layout, member: Member) -> None:
        """Stand on the genesis that lies in the data directory of `member`."""
        self._network = load_network(layout.network_file)
        self._voting_keys = _voting_keys(layout, self._network)
        self._path = Path(member.data_dir)
        self._executor = Executor(self._network, Engine(CONTRACTS, FURTHER), Membership)
        self._store = Store(self._path, self._network.network_id, self._network.genesis_hash)
        self._executor.open(self._store.snapshot())
        self._transactions = self._in_part = 0
        self._keys = sum(1 for _ in self._store.rows(b"s", b"t"))
        self._execute_s = self._apply_s = 0.0
        self._busy_s = 0.0
        self._cpu_s = time.process_time()
        self._written_bytes = _written_bytes()
        self._parts: list[Part] = []

    def add(self, time_ms: int, data: Sequence[bytes], *, last: bool) -> None:
        """A block of exactly these transactions, of which each does something, is the head."""
        began = time.perf_counter()
        head = self._store.head
        members = head.members
        rotation = self._network.parameters.rotation_heights
        proposer = members.id(members.primary(head.height + 1, 0, rotation))
        candidates = [Transaction.decode(item) for item in data]
        executed = self._executor.build(time_ms, proposer, candidates)
        done = time.perf_counter()
        if executed is None or executed.body.transactions != tuple(data):
            raise TestnetError(f"the planned transactions do not fit block {head.height + 1}", exit_code=70)
        # A call that failed has no events.
        if len({at for places in executed.topics.values() for at in places}) != len(data):
            raise TestnetError(f"a planned transaction fails in block {head.height + 1}", exit_code=70)
        certificate = self._certificate(executed)
        if last:
            self._vote(executed, certificate)
        applying = time.perf_counter()
        self._store.apply(executed, certificate, start_view=0)
        self._executor.advance(executed, self._store.snapshot())
        ended = time.perf_counter()
        before = executed.writes.before
        for key, value in executed.writes.after.items():
            self._keys += (value is not None) - (before[key] is not None)
        self._in_part += len(data)
        self._execute_s += done - began
        self._apply_s += ended - applying
        self._busy_s += time.perf_counter() - began

    def end_part(self) -> None:
        """What was added since the last part is one."""
        self._transactions += self._in_part
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        written, self._written_bytes = _written_bytes() - self._written_bytes, _written_bytes()
        spent_s = (self._execute_s, self._apply_s, cpu_s)
        execute_us, apply_us, cpu_us = (spent * 1e6 / self._in_part for spent in spent_s)
        self._parts.append(
            Part(
                self._transactions,
                self._keys,
                round(disk_usage(self._path) / 1e6, 2),
                round(execute_us, 1),
                round(apply_us, 1),
                round(execute_us + apply_us, 1),
                round(cpu_us, 1),
                round(written / self._in_part, 1),
            )
        )
        self._in_part, self._execute_s, self._apply_s = 0, 0.0, 0.0

    def built(self, seconds: float) -> Built:
        """What was made in `seconds`; nothing more is added, and the directory is free."""
        height = self._store.head.height
        self._store.close()
        disk = disk_usage(self._path)
        middle = len(self._parts) // 2
        first, last = (
            statistics.fmean(part.total_us for part in parts)
            for parts in (self._parts[:middle], self._parts[middle:])
        )
        return Built(
            height=height,
            transactions=self._transactions,
            keys=self._keys,
            seconds=round(seconds, 1),
            transactions_per_s=round(self._transactions / seconds, 1),
            waited_share=round(max(0.0, 1 - self._busy_s / seconds), 3),
            disk_mb=round(disk / 1e6, 1),
            bytes_per_transaction=round(disk / self._transactions, 1),
            second_half_against_first=round(last / first, 2),
            parts=tuple(self._parts),
        )

    def close(self) -> None:
        """The directory is free."""
        self._store.close()

    def _certificate(self, executed: ExecutedBlock) -> Certificate:
        """The commit votes of a quorum; who is left out of it changes with the height."""
        members = self._store.head.members
        message = vote_bytes(executed.header.network, VoteKind.COMMIT, 0, executed.height, executed.digest)
        places = sorted((executed.height + step) % members.n for step in range(members.quorum))
        signatures = tuple((place, self._voting_keys[place].sign(message)) for place in places)
        return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, signatures)

    def _vote(self, executed: ExecutedBlock, certificate: Certificate) -> None:
        """The directory is that of a member that has voted: who opens it asks the others for its newest votes."""
        place, signature = certificate.signatures[0]
        vote = Vote(VoteKind.COMMIT, 0, executed.height, executed.digest, place, signature)
        self._store.put_records([VoteRecord(vote, False, None)], {executed.digest: executed.body})


def _written_bytes() -> int:
    """What this process has had written to disk so far."""
    used = usage(os.getpid())
    return 0 if used is None else used.written_bytes


def _voting_keys(layout: Layout, network: NetworkConfig) -> list[SigningKey]:
    phrase = find_passphrase({}, layout.passphrase_file)
    files = [(layout.member_dir(item.id) / "keys" / "voting.key", item.id) for item in network.validators]
    return [read_key_file(path, phrase, kind="voting", id=name)[1] for path, name in files]


@contextmanager
def _signed_blocks(directory: Path, plan: ChainPlan) -> Iterator[Iterator[list[bytes]]]:
    """Give the signed transactions of each block, ascending; a process of its own signs the next one meanwhile."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    signer = context.Process(target=_sign_blocks, args=(directory, plan, theirs), daemon=True)
    signer.start()
    theirs.close()
    try:
        yield _received(ours, plan.size.blocks)
    finally:
        ours.close()
        signer.terminate()
        signer.join()


def _received(connection: Connection, blocks: int) -> Iterator[list[bytes]]:
    for height in range(1, blocks + 1):
        try:
            data = connection.recv_bytes(SIGNATURE_BYTES_MAX)
        except EOFError as error:
            raise TestnetError(f"the process that signs ended before block {height}", exit_code=70) from error
        yield msgspec.msgpack.decode(data, type=list[bytes])


def _sign_blocks(directory: Path, plan: ChainPlan, connection: Connection) -> None:
    """All blocks were signed and sent: the other process. Sending waits for the receiver, so memory is bounded."""
    keys = signing_keys(Layout(directory), plan.senders)
    gc.set_threshold(*GC_THRESHOLDS)
    for height in range(1, plan.size.blocks + 1):
        data = [sign(body, [keys[body.sender]]).data for body in plan.bodies(height)]
        connection.send_bytes(msgspec.msgpack.encode(data))


@contextmanager
def _few_walks() -> Iterator[None]:
    """The collector walks as rarely as in a node."""
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
