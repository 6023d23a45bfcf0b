"""Which version of which contract executes, and since which height: the ledger says it, for every node alike.

`governance` decides; this contract keeps what was decided and judges whether a change is one that can be made. The
executor reads `versions` at each head: what stands there after block h executes block h + 1, on every member, in a
replay and in a repair too. A change is carried out at the end of a block (node/executor/activation.py), with the
migration that the new version declares, all of it or nothing.

Invariants: a contract has one row, so one version of it executes at a height; a row changes by `switch` alone,
which `governance` calls; at most one decided change of a contract waits. The contracts that the node itself reads
(CORE) are never changed here: their code comes with a release that all members install together.
"""

from typing import Annotated, Literal

from contracts.sdk import (
    Argument,
    Code,
    Context,
    Contract,
    Event,
    Item,
    Meta,
    State,
    Value,
    call,
    genesis,
    invariant,
    query,
    require,
)

ContractKind = Literal["activate_contract", "deactivate_contract", "upgrade_contract"]
KindName = Annotated[str, Meta(max_length=32)]
ContractName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z", description="a contract's name")]
VersionNumber = Annotated[int, Meta(ge=1, le=1_000_000, description="a version of the contract")]
SourceDigest = Annotated[
    bytes, Meta(min_length=32, max_length=32, description="the version's source digest: `hansa contracts`")
]

CONTRACT_KINDS = ("activate_contract", "deactivate_contract", "upgrade_contract")
GOVERNANCE = "@governance"
CORE = ("membership", "governance", "lifecycle", "maintenance", "brake")
"""What the node reads without calling it: a version that kept it otherwise would stop every node."""
CONTRACTS_MAX = 100


class Founding(Argument):
    """A contract's version that is active from genesis on."""

    contract: ContractName
    version: VersionNumber


class Version(Value):
    """The version of a contract that executes, or did until it was deactivated, and since which height that is so.

    `source` is the digest that the members decided on; empty from genesis on, where the definition names no bytes
    and the contracts hash of the blocks says which ran.
    """

    contract: str
    version: int
    source: bytes
    since: int
    active: bool


class Target(Value):
    """What a proposal makes of a contract: this version of this source, in blocks from `at_height` on."""

    version: int
    source: bytes
    at_height: int


class Plan(Value):
    """A decided change that waits for its height and for readiness."""

    proposal: int
    contract: str
    target: Target


class VersionChanged(Event):
    """From height `since` on, this version of the contract executes, or none where it is not active."""

    contract: str
    version: int
    source: bytes
    since: int
    active: bool

    topics = ("contract/{contract}",)


class Lifecycle(Contract):
    """The versions of contracts that execute, and the decided changes of them that wait."""

    codes = (
        Code("core_contract", "The node itself reads this contract: it changes with a release of all members."),
        Code("contract_active", "The contract is active already: upgrade it."),
        Code("contract_not_active", "The contract is not active."),
        Code("version_not_next", "A contract goes on in the version it has, or in the next one."),
        Code("too_many_contracts", "A network has at most 100 contracts."),
        Code("founding_invalid", "The network definition names a contract twice."),
    )

    versions: Item[tuple[Version, ...]] = Item()
    # What it was before the last change: nodes that have not come so far yet run the same code.
    previous: Item[tuple[Version, ...]] = Item()
    plans: Item[tuple[Plan, ...]] = Item()

    @genesis
    def create(self, ctx: Context, founding: tuple[Founding, ...] = ()) -> None:
        """Note what is active from genesis on: the executor names it all, by its rule and the definition's
        words.
        """
        names = [item.contract for item in founding]
        require(all(names.count(name) == 1 for name in names), "founding_invalid")
        require(len(names) <= CONTRACTS_MAX, "too_many_contracts")
        self.versions.set(tuple([Version(item.contract, item.version, b"", 1, True) for item in founding]))

    @call
    def version_of(self, ctx: Context, contract: ContractName) -> Version:
        """The contract's row; version 0 of a contract that was never active."""
        found = [row for row in self._rows() if row.contract == contract]
        return found[0] if found else Version(contract, 0, b"", 0, False)

    @call
    def obstacle(self, ctx: Context, kind: KindName, contract: ContractName, version: VersionNumber) -> str:
        """Why the change cannot be made of the contract as it is; empty: it can."""
        row = self.version_of(ctx, contract)
        if contract in CORE:
            return "core_contract"
        if kind == "activate_contract" and row.active:
            return "contract_active"
        if kind != "activate_contract" and not row.active:
            return "contract_not_active"
        if kind == "deactivate_contract":
            return "" if version == row.version else "version_not_next"
        if row.version == 0:
            return "" if len(self._rows()) < CONTRACTS_MAX else "too_many_contracts"
        same = kind == "activate_contract" and version == row.version
        return "" if same or version == row.version + 1 else "version_not_next"

    @call
    def plan(self, ctx: Context, proposal: int, contract: ContractName, target: Target) -> None:
        """The decided change waits; `governance` calls this."""
        require(ctx.sender == GOVERNANCE, "not_authorized")
        require(len(self.plans.get() or ()) < CONTRACTS_MAX, "too_many_contracts")
        self.plans.set((*self._without(proposal), Plan(proposal, contract, target)))

    @call
    def drop(self, ctx: Context, proposal: int) -> None:
        """The change does not wait any more; `governance` calls this."""
        require(ctx.sender == GOVERNANCE, "not_authorized")
        self.plans.set(self._without(proposal))

    @call
    def switch(
        self, ctx: Context, contract: ContractName, version: VersionNumber, source: bytes, active: bool
    ) -> None:
        """From the next height on the contract is so; `governance` calls this at the end of a block."""
        require(ctx.sender == GOVERNANCE, "not_authorized")
        rows = self._rows()
        changed = Version(contract, version, source, ctx.height + 1, active)
        known = any(row.contract == contract for row in rows)
        self.previous.set(rows)
        kept = tuple([changed if row.contract == contract else row for row in rows])
        self.versions.set(kept if known else (*kept, changed))

    def _rows(self) -> tuple[Version, ...]:
        return self.versions.get() or ()

    def _without(self, proposal: int) -> tuple[Plan, ...]:
        return tuple([item for item in self.plans.get() or () if item.proposal != proposal])

    # --- queries ---

    @query
    def current(self) -> tuple[Version, ...]:
        """Every contract's row, in the order in which they came."""
        return self._rows()

    @query
    def planned(self) -> tuple[Plan, ...]:
        """The decided changes that wait."""
        return self.plans.get() or ()

    @staticmethod
    def read_versions(state: State) -> tuple[Version, ...]:
        """Return every contract's row as it holds for the next block; empty where nothing says it."""
        return Lifecycle.versions.read_from(state) or ()

    @staticmethod
    def read_previous(state: State) -> tuple[Version, ...]:
        """Return the rows before the last change; empty where there was none."""
        return Lifecycle.previous.read_from(state) or ()

    @staticmethod
    def read_plans(state: State) -> tuple[Plan, ...]:
        """Return the decided changes that wait."""
        return Lifecycle.plans.read_from(state) or ()

    # --- invariants ---

    @invariant
    def one_row_each(self) -> bool:
        """A contract has one row: one version of it executes at a height."""
        names = [row.contract for row in self._rows()]
        return all(names.count(name) == 1 for name in names)

    @invariant
    def one_plan_each(self) -> bool:
        """At most one decided change of a contract waits."""
        names = [item.contract for item in self.plans.get() or ()]
        return all(names.count(name) == 1 for name in names)

    @invariant
    def core_stays(self) -> bool:
        """What the node reads is active, as far as there are contracts at all."""
        rows = self._rows()
        return all(row.active for row in rows if row.contract in CORE)
