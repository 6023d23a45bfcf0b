"""Evidence packs (docs/evidence.md): files that prove what the ledger says to who trusts nobody. Pure."""

from node.evidence.item import (
    ENTRIES_MAX,
    account_key,
    certified_height,
    judge_request,
    proof_height,
    read_body,
    request_key_of,
    state_kind,
    statement_item,
    statement_range,
    transaction_item,
)
from node.evidence.naming import named_key
from node.evidence.pack import LINKS_MAX, StateProof, assemble, check_checkpoint, state_proof
from node.evidence.past import PastTree

__all__ = [
    "ENTRIES_MAX",
    "LINKS_MAX",
    "PastTree",
    "StateProof",
    "account_key",
    "assemble",
    "certified_height",
    "check_checkpoint",
    "judge_request",
    "named_key",
    "proof_height",
    "read_body",
    "request_key_of",
    "state_kind",
    "state_proof",
    "statement_item",
    "statement_range",
    "transaction_item",
]
