"""Questions to contracts, answered on the state of one view. Nothing is written. Pure.

A question costs what its contract reads, up to `OPERATIONS_MAX`, which takes a second. Most read a value or two,
which takes less than handing them to a thread; so whoever must not be held up asks briefly first.
"""

from typing import Any, Final, TypeVar

from consensus.codec import encode
from contracts.engine import CallError, Engine, Environment, EventRecord, Revert
from contracts.storage import HostFailure
from node.errors import HansaError, NotFound, RejectedTransaction
from node.executor.activation import active_engine
from node.state import LedgerView, Overlay

T = TypeVar("T")

OPERATIONS_MAX: Final = 2_000_000
BRIEF_OPERATIONS_MAX: Final = 400


class NotBrief(BaseException):
    """The question reads rows or events, or more values than a brief answer may take: ask it whole, elsewhere.

    Not an Exception, so that no rule for failing contract code catches it on its way.
    """


class Queries:
    """Answers for one network's contracts, in the versions of the state asked about; may be asked in any thread."""

    def __init__(self, network_id: str, engine: Engine) -> None:
        self._network_id = network_id
        self._shipped = engine
        self._known: tuple[bytes, Engine] = (b"", engine)

    def answer(self, view: LedgerView, contract: str, name: str, args: dict[str, Any]) -> Any:
        """Return a query's answer, in plain values, on the state of `view` (of the head, or of a past height).

        Raise NotFound (unknown_contract, unknown_method, block_pruned), RejectedTransaction (invalid_arguments,
        query_refused with the contract's code as `reason` in the details).
        """
        try:
            return self._ask(Overlay(view), _Events(view), view, contract, name, args, OPERATIONS_MAX)
        except CallError as error:
            raise _query_error(error) from error

    def brief_answer(self, view: LedgerView, contract: str, name: str, args: dict[str, Any]) -> Any:
        """Return or raise as `answer` does, in the time of a few reads; raise NotBrief when it takes more."""
        try:
            return self._ask(_Values(view), _NoEvents(), view, contract, name, args, BRIEF_OPERATIONS_MAX)
        except CallError as error:
            if error.code == "limit_exceeded":
                raise NotBrief from error
            raise _query_error(error) from error

    def _ask(
        self,
        state: Overlay,
        events: "_Events | _NoEvents",
        view: LedgerView,
        contract: str,
        name: str,
        args: dict[str, Any],
        operations_max: int,
    ) -> Any:
        head = view.head
        env = Environment(self._network_id, head.height, head.time_ms, "", bytes(32), encode)
        try:
            return self._engine_at(view).query(state, events, env, contract, name, args, operations_max)
        except Revert as revert:
            meaning = self._engine_at(view).meaning_of(contract, revert.code)
            text = " ".join(part for part in (f"{revert.code}.", meaning, revert.detail) if part)
            raise RejectedTransaction("query_refused", text, reason=revert.code) from revert

    def _engine_at(self, view: LedgerView) -> Engine:
        """The contracts that are active after the view's block."""
        digest, engine = self._known
        if digest != view.head.digest:
            engine = active_engine(self._shipped, Overlay(view))
            self._known = (view.head.digest, engine)
        return engine


class _Events:
    """The events of a view as contracts see them."""

    def __init__(self, view: LedgerView) -> None:
        self._view = view

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventRecord]]:
        """Return up to `limit` (height, event) under `topic`, oldest first; raise what the store raises."""
        try:
            found = self._view.events(topic, from_height, to_height, limit)
        except HansaError as error:
            raise HostFailure from error
        return [
            (height, EventRecord(event.contract, event.name, event.topics, event.data)) for height, event in found
        ]


class _NoEvents:
    """Events are not for brief answers."""

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventRecord]]:
        """Raise NotBrief."""
        raise NotBrief


class _Values(Overlay):
    """State without rows, of which any number may be asked for at once."""

    def scan(self, start: bytes, end: bytes, type_: type[T], limit: int) -> list[tuple[bytes, T]]:
        """Raise NotBrief."""
        raise NotBrief


def _query_error(error: CallError) -> HansaError:
    if error.code in ("unknown_contract", "unknown_method"):
        return NotFound(error.code, error.message)
    if error.code == "invalid_arguments":
        return RejectedTransaction(error.code, error.message)
    return RejectedTransaction("query_refused", error.message, reason=error.code)
