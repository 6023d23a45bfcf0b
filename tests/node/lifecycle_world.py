"""A ledger on which the versions of the contract `tally` change: counted by ones, then by twos."""

from pathlib import Path

from consensus.effects import BlockStanding
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.governance import Governance
from contracts.lifecycle import Lifecycle, Version
from contracts.loader import load_source
from contracts.sdk import Contract
from node.config import NetworkConfig
from node.ledger import Call, Proposal, Transaction
from node.state import ExecutedBlock, Overlay
from tests.node.ledger_world import BANKS, HOUR_MS, Ledger, decoded, key_of, network

FIRST = """
from contracts.sdk import Context, Contract, Map, call, query

class Tally(Contract):
    counts: Map[str, int] = Map()

    @call
    def add(self, ctx: Context, name: str) -> None:
        self.counts[name] = (self.counts.get(name) or 0) + 1

    @query
    def count(self, name: str) -> int:
        return self.counts.get(name) or 0
"""
SECOND = """
from contracts.sdk import Context, Contract, Map, Value, call, migration, query, require
from contracts.tally import Tally as Former

class Count(Value):
    total: int
    last: str

class Tally(Contract):
    version = 2
    counts: Map[str, Count] = Map()

    @migration
    def begin(self, ctx: Context) -> None:
        for name, total in ctx.former(Former).counts.scan():
            require(name != "poison", "poisoned")
            self.counts[name] = Count(total, "")

    @call
    def add(self, ctx: Context, name: str) -> None:
        known = self.counts.get(name)
        self.counts[name] = Count(2 if known is None else known.total + 2, ctx.sender)

    @query
    def count(self, name: str) -> int:
        known = self.counts.get(name)
        return 0 if known is None else known.total
"""


def tally(name: str, source: str) -> type[Contract]:
    """The contract of a source that is loaded as `contracts.<name>`."""
    contract: type[Contract] = load_source(f"contracts.{name}", source).Tally
    return contract


TALLY_1 = tally("tally", FIRST)
TALLY_2 = tally("tally_2", SECOND)
OTHER_2 = tally("tally_2_other", SECOND + "\nOTHER = 1\n")


class Versions(Ledger):
    """A ledger that begins with version 1 of `tally`, at a node that ships `further` besides."""

    def __init__(
        self, path: Path, *further: type[Contract], config: NetworkConfig | None = None, **parameters: int
    ) -> None:
        self.engine = Engine((*CONTRACTS, TALLY_1), further)
        super().__init__(path, config or network("testnet", **parameters))

    @property
    def height(self) -> int:
        """The head's."""
        return self.store.head.height

    @property
    def version(self) -> Version:
        """The row of `tally`."""
        return next(row for row in Lifecycle.read_versions(Overlay(self.executor.view)) if row.contract == "tally")

    def status(self, number: int = 1) -> tuple[str, str]:
        """How the proposal stands, and why it ended."""
        found = Governance.proposals.read_from(Overlay(self.executor.view), number)
        assert found is not None
        return found.status, found.ended_code

    def count(self, name: str = "a", at: int | None = None) -> int:
        """The tally's count, by its own query."""
        view = self.store.snapshot()
        past = view if at is None else view.at(at)
        answer: int = self.executor.queries.answer(past, "tally", "count", {"name": name})
        return answer

    def block(self, *calls: tuple[str, Call]) -> ExecutedBlock:
        """The next block, with a transaction for each (sender, call); a node signs with its voting key."""
        executed = self.build(*[self.signed(sender, call) for sender, call in calls], allow_empty=True)
        assert executed is not None
        return executed

    def signed(self, sender: str, call: Call) -> Transaction:
        """The sender's transaction."""
        member, _, rest = sender.partition("/")
        voting_key = self.network.member(member).voting_key
        return self.transaction(sender, call, keys=[voting_key if rest else key_of(member)])

    def run(self, *calls: tuple[str, Call]) -> list[str]:
        """The outcomes of calls that are decided in one block."""
        executed = self.block(*calls)
        self.decide(executed)
        positions = range(executed.scheduled, len(executed.tx_ids))
        return [self.store.receipt(executed.height, position).calls[0].code for position in positions]

    def add(self, name: str = "a") -> list[str]:
        """The outcome of counting once more."""
        return self.run(adding(name))

    def propose(
        self, kind: str, version: int, at_height: int, source: bytes | None = None, contract: str = "tally"
    ) -> list[str]:
        """The outcome of bank-a's proposal about `contract`."""
        args = {
            "kind": kind,
            "contract": contract,
            "version": version,
            "source": source or self.engine.source_digest(contract, version) or bytes(32),
            "at_height": at_height,
            "expires_at_ms": self.now_ms + HOUR_MS,
        }
        return self.run(("bank-a", Call("governance", "propose_contract", args)))

    def vote(self, number: int = 1) -> list[str]:
        """The outcomes of two more votes: then a quorum has voted for it."""
        call = Call("governance", "vote", {"proposal": number, "yes": True})
        return self.run(*[(bank, call) for bank in BANKS[1:3]])

    def ready(self, *banks: str, number: int = 1) -> list[str]:
        """The outcomes of what these banks' nodes say."""
        call = Call("governance", "ready", {"proposal": number})
        return self.run(*[(f"{bank}/node", call) for bank in banks])

    def decide_change(
        self, kind: str, version: int, at_height: int, number: int = 1, contract: str = "tally"
    ) -> None:
        """The change is decided and three of four nodes are ready."""
        assert self.propose(kind, version, at_height, contract=contract) == ["ok"]
        assert self.vote(number) == ["ok", "ok"]
        assert self.ready(*BANKS[:3], number=number) == ["ok"] * 3

    def grow(self, height: int) -> None:
        """Blocks are made, with a call of `tally` in each, up to `height`."""
        while self.height < height:
            self.add()

    def catch_up(self, ahead: Ledger) -> None:
        """The blocks that the other ledger has decided are executed and applied here."""
        for height in range(self.height + 1, ahead.store.head.height + 1):
            body = ahead.store.block(height).body
            transactions = decoded(body)
            proposal = Proposal(body.header, tuple(item.wire_id for item in transactions), body.quarantined)
            self.decide(self.executor.check(proposal, transactions, standing=BlockStanding.DECIDED))


def adding(name: str = "a") -> tuple[str, Call]:
    """Who counts once more, and the call."""
    return "bank-a", Call("tally", "add", {"name": name})
