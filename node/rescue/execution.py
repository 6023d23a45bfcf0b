"""The kept block and the recovery block, executed on a stopped node's head: the same at every survivor."""

from collections.abc import Sequence

from consensus.effects import BlockStanding
from consensus.members import Members, Validator
from consensus.messages import Certificate
from node.config import Recovery
from node.errors import ConfigError, InvalidBlock, RejectedTransaction
from node.executor import AheadView, Executor
from node.ledger import BlockBody, Proposal, Transaction, transaction_signing_bytes
from node.signatures import verify_many
from node.state import ExecutedBlock


def execute_kept(executor: Executor, body: BlockBody, certificate: Certificate) -> ExecutedBlock:
    """Return the kept block, executed; the executor stands on it, in memory alone.

    Raise ConfigError("recovery_differs") where this node comes to something else than its header says.
    """
    base = executor.view
    try:
        transactions = [Transaction.decode(data) for data in body.transactions]
        _require_signatures(transactions)
        proposal = Proposal(body.header, tuple([item.wire_id for item in transactions]), body.quarantined)
        executed = executor.check(proposal, transactions, standing=BlockStanding.DECIDED)
    except (InvalidBlock, RejectedTransaction) as error:
        raise ConfigError("recovery_differs", f"the kept block is refused here: {error.message}") from error
    executor.advance(executed, AheadView(base, [executed], certificate), shown=False)
    return executed


def execute_recovery(executor: Executor, recovery: Recovery, time_ms: int) -> ExecutedBlock:
    """Return the recovery block on the block that the executor stands on.

    Raise ConfigError: `recovery_refused` where the members' contract refuses the survivors, `contract_not_here`
    where this node lacks code that the ledger has active: the block would commit to other code than the network's.
    """
    if executor.lacking:
        raise ConfigError(
            "contract_not_here", f"the ledger has this active, and it is not here: {', '.join(executor.lacking)}"
        )
    if time_ms <= executor.head.time_ms:
        raise ConfigError("recovery_refused", "its time is not after that of the block before it")
    try:
        return executor.recover(recovery, time_ms)
    except InvalidBlock as error:
        raise ConfigError(error.code, error.message) from error


def survivors_of(members: Members, ids: Sequence[str]) -> tuple[Validator, ...]:
    """Return those of `members` that are named; raise ConfigError("recovery_refused") for who is none of them."""
    for member in ids:
        if members.index(member) is None:
            raise ConfigError("recovery_refused", f"{member} has no vote at the last certified block")
    return tuple([item for item in members if item.id in ids])


def _require_signatures(transactions: Sequence[Transaction]) -> None:
    signed = [
        (item.key, transaction_signing_bytes(transaction.body_bytes), item.signature)
        for transaction in transactions
        for item in transaction.signatures
    ]
    if not all(verify_many(signed)):
        raise ConfigError("recovery_differs", "a transaction of the kept block has a wrong signature")
