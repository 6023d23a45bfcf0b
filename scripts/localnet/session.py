"""What the commands do with a running network: load data once, read it back, send traffic."""

import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from node.client import AsyncClient
from node.config import load_network
from node.keys import SigningKey, find_passphrase, read_key_file
from scripts.localnet.audit import Audit, audit, node_clients
from scripts.localnet.batches import batch_client
from scripts.localnet.founding import key_file
from scripts.localnet.generator import ACCOUNTS_PER_MEMBER, SETUP_EXPIRES_MS, Shape, Traffic
from scripts.localnet.journal import Entry, Journal
from scripts.localnet.layout import Layout
from scripts.localnet.loading import Loader, LoadFigures, OnProgress
from scripts.localnet.nodes import MemberStatus, Nodes
from scripts.localnet.open_loop import LoadReport, report, sending, sign
from scripts.localnet.replay import Cast, Replay, data_name, make_replay, senders


class Loaded(msgspec.Struct, frozen=True):
    """The network after a load. `figures` is None when nothing was ever loaded, `audit` when nothing was now."""

    members: list[MemberStatus]
    figures: LoadFigures | None
    audit: Audit | None

    @property
    def ok(self) -> bool:
        """Whether every outcome and every sum is as expected."""
        return (self.audit is None or self.audit.ok) and (self.figures is None or self.figures.ok)


class Session:
    """A running test network and the operator's terminal."""

    def __init__(self, layout: Layout, nodes: Nodes, console: Console) -> None:
        self._layout = layout
        self._nodes = nodes
        self._console = console
        self._network = load_network(layout.network_file)
        self._journal = Journal(layout.directory / "loads.json")
        self._cast = Cast(tuple(member.id for member in nodes.network.members))

    def load(self, payments: Path, claims: Path, transfers_max: int | None, singles: int) -> Loaded:
        """The files are in the ledger. When they are loaded only now, the ledger is read back and compared as well.

        A load that was begun keeps the `transfers_max` and `singles` of its beginning.
        """
        if transfers_max == 0:
            return Loaded(self._nodes.statuses(), None, None)
        name = data_name(payments, claims)[0]
        entry = self._journal.begin(name, payments, claims, transfers_max, singles)
        if entry.figures is not None:
            return Loaded(self._nodes.statuses(), entry.figures, None)
        replay = self._replay(entry)
        figures = self._work(replay, entry)
        if figures.ok:
            self._journal.put(msgspec.structs.replace(entry, figures=figures))
        self._nodes.wait_agreement()
        return self._audited(figures, [replay])

    def check(self) -> Loaded:
        """The nodes agree, and every balance and payout was read back and compared with what was loaded."""
        self._nodes.wait_agreement()
        replays = [self._replay(entry) for entry in self._journal.entries.values() if entry.figures is not None]
        return self._audited(None, replays)

    def _audited(self, figures: LoadFigures | None, replays: list[Replay]) -> Loaded:
        with self._console.status("reading every account back"):
            found = asyncio.run(self._audit(replays))
        return Loaded(self._nodes.statuses(), figures, found)

    def _replay(self, entry: Entry) -> Replay:
        return make_replay(Path(entry.payments), Path(entry.claims), self._cast, entry.transfers_max, entry.singles)

    @property
    def urls(self) -> list[str]:
        """The nodes' APIs, in the members' order."""
        return [member.api for member in self._nodes.network.members]

    @property
    def members(self) -> tuple[str, ...]:
        """The members' ids; each is also the id of its root principal."""
        return self._cast.members

    @property
    def issuer(self) -> str:
        """The member that issues the load's currency."""
        return self._cast.issuers["USD"]

    @property
    def network_id(self) -> str:
        """What transactions name."""
        return self._nodes.network.network

    async def prepare_traffic(
        self, expires_in_ms: int = SETUP_EXPIRES_MS, accounts_per_member: int = ACCOUNTS_PER_MEMBER
    ) -> Traffic:
        """Transfers by the members' own principals, whose accounts exist and are funded."""
        keys = self.keys(self._cast.members)
        traffic = Traffic(self._nodes.network.network, keys, self._cast.issuers["USD"], accounts_per_member)
        async with AsyncClient(self.urls) as client, batch_client(self.urls) as batches:
            await traffic.prepare(client, batches, expires_in_ms)
        return traffic

    async def traffic(self, shape: Shape) -> LoadReport:
        """An open-loop load of transfers."""
        traffic = await self.prepare_traffic()
        with self._console.status(
            f"{shape.requests * shape.transactions_per_request:,} transactions, signed and sent"
        ):
            return await self.send(traffic, shape)

    async def send(self, traffic: Traffic, shape: Shape, expires_in_ms: int = SETUP_EXPIRES_MS) -> LoadReport:
        """Transfers of that shape were signed, then sent to all nodes in turn."""
        with tempfile.TemporaryDirectory(prefix="load-", dir=self._layout.directory) as scratch:
            signed = await sign(Path(scratch), traffic, traffic.payments, shape, expires_in_ms=expires_in_ms)
            async with sending(signed, self.urls) as running:
                return report(await running.answers(), shape)

    def _work(self, replay: Replay, entry: Entry) -> LoadFigures:
        keys = self.keys(senders(replay.phases))
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("calls"),
            TimeElapsedColumn(),
        )
        self._console.print(f"loading {replay.transfers:,} transfers and {replay.claims:,} claims ({replay.name})")
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", total=sum(phase.calls for phase in replay.phases))

            def on_progress(what: str, calls: int) -> None:
                progress.update(task, advance=calls, description=what)

            return asyncio.run(self._submit(replay, entry, keys, on_progress))

    async def _submit(
        self, replay: Replay, entry: Entry, keys: dict[str, SigningKey], on_progress: OnProgress
    ) -> LoadFigures:
        async with batch_client(self.urls) as batches:
            loader = Loader(batches, self._nodes.network.network, keys, entry.expires_at_ms)
            return await loader.run(replay.phases, on_progress)

    async def _audit(self, replays: list[Replay]) -> Audit:
        principals = [principal.id for principal in self._network.principals]
        members = self._nodes.network.members
        async with node_clients(self.urls) as clients:
            by_member = {member.id: client for member, client in zip(members, clients, strict=True)}
            return await audit(by_member, principals, sorted(self._cast.issuers), replays)

    def keys(self, principals: Iterable[str]) -> dict[str, SigningKey]:
        """The signing keys of these principals."""
        phrase = find_passphrase({}, self._layout.passphrase_file)
        return {
            principal: read_key_file(key_file(self._layout, principal), phrase, kind="principal", id=principal)[1]
            for principal in principals
        }
