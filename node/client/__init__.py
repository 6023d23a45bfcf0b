"""The Python client, and the types of what a node answers.

with Client("http://127.0.0.1:7650", sender="bank-a", signers=[key]) as client:
    fate = client.call("settlement.transfer", {"debtor": "A-1", "creditor": "B-1", "amount": 5_00})
    print(fate.status, fate.height, fate.ok)
"""

from node.client.answers import (
    BatchAnswer,
    BlockAnswer,
    CallOutcome,
    ChangedValue,
    CodeDescription,
    ContractAnswer,
    Diagnosis,
    DryRun,
    Event,
    EventPage,
    EvidenceItem,
    Fate,
    FateStatus,
    LedgerEvent,
    MemberStatus,
    MethodDescription,
    NodeStatus,
    PeerStatus,
    QueryAnswer,
    Submission,
    TransactionAnswer,
    TransactionPage,
    TransactionSummary,
)
from node.client.asynchronous import AsyncClient
from node.client.blocking import Client
from node.client.drafting import Signer, call, countersign, draft, sign
from node.client.rendering import block_answer, content, error_body, outcomes, plain_json

__all__ = [
    "AsyncClient",
    "BatchAnswer",
    "BlockAnswer",
    "CallOutcome",
    "ChangedValue",
    "Client",
    "CodeDescription",
    "ContractAnswer",
    "Diagnosis",
    "DryRun",
    "Event",
    "EventPage",
    "EvidenceItem",
    "Fate",
    "FateStatus",
    "LedgerEvent",
    "MemberStatus",
    "MethodDescription",
    "NodeStatus",
    "PeerStatus",
    "QueryAnswer",
    "Signer",
    "Submission",
    "TransactionAnswer",
    "TransactionPage",
    "TransactionSummary",
    "block_answer",
    "call",
    "content",
    "countersign",
    "draft",
    "error_body",
    "outcomes",
    "plain_json",
    "sign",
]
