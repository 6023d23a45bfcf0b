"""Ledger values as answers: bytes become lower-case hex, tuples become lists, Structs become objects."""

from typing import Any, Final

import msgspec

from consensus.messages import Certificate, VoteKind
from node.client.answers import (
    BlockAnswer,
    BlockTransaction,
    CallContent,
    CallOutcome,
    CertificateAnswer,
    ErrorBody,
    Event,
    HeaderAnswer,
    TransactionContent,
)
from node.errors import HansaError
from node.ledger import CertifiedBlock, Header, Receipt, Transaction

_AS_IS: Final = frozenset({str, int, float, bool, type(None)})


def plain_json(value: object) -> Any:
    """`value` (plain types and Structs) as JSON can hold it, with bytes as hex."""
    if type(value) in _AS_IS:
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        # Events come by the thousand and hold mostly what JSON holds: those values are not asked one by one.
        return {
            key if isinstance(key, str) else str(key): item if type(item) in _AS_IS else plain_json(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return plain_json(msgspec.to_builtins(value, builtin_types=(bytes,)))


def outcomes(receipt: Receipt) -> tuple[CallOutcome, ...]:
    """The outcome of each call of a transaction."""
    return tuple(
        CallOutcome(
            code=call.code,
            events=tuple(
                Event(contract=event.contract, name=event.name, topics=event.topics, data=plain_json(event.data))
                for event in call.events
            ),
        )
        for call in receipt.calls
    )


def content(transaction: Transaction) -> TransactionContent:
    """What the sender signed, and with which keys."""
    body = transaction.body
    return TransactionContent(
        wire_id=transaction.wire_id.hex(),
        network=body.network,
        sender=body.sender,
        request_id=body.request_id,
        expires_at_ms=body.expires_at_ms,
        mode=body.mode,
        calls=tuple(
            CallContent(contract=call.contract, method=call.method, args=plain_json(call.args))
            for call in body.calls
        ),
        keys=tuple(signature.key.hex() for signature in transaction.signatures),
    )


def block_answer(block: CertifiedBlock, receipts: tuple[Receipt, ...]) -> BlockAnswer:
    """A decided block with its certificate and the outcome of every transaction."""
    header = block.body.header
    quarantined = set(block.body.quarantined)
    decoded = [Transaction.decode(data) for data in block.body.transactions]
    return BlockAnswer(
        height=header.height,
        digest=header.digest.hex(),
        header=_header(header),
        certificate=_certificate(block.certificate),
        transactions=tuple(
            BlockTransaction(
                tx_id=transaction.tx_id.hex(),
                content=content(transaction),
                receipts=outcomes(receipt),
                quarantined=position in quarantined,
            )
            for position, (transaction, receipt) in enumerate(zip(decoded, receipts, strict=True))
        ),
    )


def _header(header: Header) -> HeaderAnswer:
    return msgspec.convert(plain_json(msgspec.structs.asdict(header)), HeaderAnswer)


def _certificate(certificate: Certificate) -> CertificateAnswer:
    return CertificateAnswer(
        kind="commit" if certificate.kind is VoteKind.COMMIT else "prepare",
        view=certificate.view,
        height=certificate.height,
        digest=certificate.digest.hex(),
        signatures={str(member): signature.hex() for member, signature in certificate.signatures},
    )


def error_body(error: HansaError) -> ErrorBody:
    """The one shape of every failure."""
    return ErrorBody(
        code=error.code,
        message=error.message,
        action=error.entry.action,
        retryable=error.entry.retryable,
        details=error.details,
    )
