"""The pack itself: the item that is proven, the certified headers it hangs on, and who certified them.

Invariant: whoever has the network's definition can check a pack without asking anybody. The definition names the
first validators; each block in `changes` is certified by the list before it and names the list after it; so the
lists that decided `blocks` are known, and the headers of those commit to what the item says. `links`, where there
are any, join the last proven block to a later header that somebody wrote down at the time.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec

from consensus.codec import encode
from consensus.members import Validator
from node.config import NO_RECOVERIES, Recoveries
from node.errors import NotFound, RejectedTransaction, StoreError
from node.ledger import Header, sha256
from node.state_tree import StateTree
from node.store import StoreView

FORMAT = "hansa/evidence"
VERSION = 1
CHANGES_MAX = 1_000
LINKS_MAX = 100_000


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array."""


class Signatures(_Part, frozen=True):
    """A commit certificate: its view, and a quorum of (index, signature) by ascending index, not one more."""

    view: int
    signatures: tuple[tuple[int, bytes], ...]


class Change(_Part, frozen=True):
    """A block that changed the list of validators; `validators` decide from the next height on."""

    header: Header
    certificate: Signatures
    validators: tuple[Validator, ...]


class Proven(_Part, frozen=True):
    """A block to whose header the item leads."""

    header: Header
    certificate: Signatures


class StateProof(_Part, frozen=True):
    """A state key with its bytes (None: absent) and the way from them to a header's state root."""

    key: bytes
    value: bytes | None
    siblings: tuple[bytes, ...]
    pairs: bytes


class Pack(_Part, frozen=True):
    """All but the seal: what its bytes are hashed from."""

    format: str
    version: int
    kind: str
    changes: tuple[Change, ...]
    blocks: tuple[Proven, ...]
    links: tuple[Header, ...]
    item: tuple[Any, ...]


class SealedPack(Pack, frozen=True):
    """The whole file, canonical MessagePack. `seal`, the SHA-256 of the rest, proves nothing: it shows damage."""

    seal: bytes


def state_proof(tree: StateTree, key: bytes, value: bytes | None) -> StateProof:
    """Return the proof under the tree's root that `key` holds `value`."""
    proof = tree.prove(key)
    return StateProof(key, value, proof.siblings, proof.pairs)


def assemble(
    view: StoreView,
    kind: str,
    heights: Sequence[int],
    item: tuple[Any, ...],
    checkpoint: int | None = None,
    recoveries: Recoveries = NO_RECOVERIES,
) -> bytes:
    """Return the pack that proves `item` by the blocks at `heights` (ascending), linked up to a `checkpoint`.

    Raise NotFound (block_not_found, block_pruned) where a block is not here, RejectedTransaction for a checkpoint
    below the last proven block or too far above it.
    """
    last = heights[-1]
    # A change at the last proven height too: the header there names the list that it leads to.
    changed = [height for height in view.member_changes() if height <= last]
    if len(changed) > CHANGES_MAX:
        raise RejectedTransaction("proof_too_large", f"{len(changed)} changes of members lie before block {last}")
    lists = [0, *changed]

    def signatures(height: int) -> Signatures:
        """The block's certificate without the votes beyond a quorum of those who decided its height."""
        if height < 1:
            raise NotFound("block_not_found", "genesis has no certificate: the first block that proves is block 1")
        certificate = view.head_at(height).certificate
        members = view.head_at(lists[bisect_left(lists, height) - 1]).members
        quorum = (recoveries.deciders(height, view.head_at(height).digest, members) or members).quorum
        if certificate is None or len(certificate.signatures) < quorum:
            raise StoreError("store_corrupt", f"block {height} is missing its certificate, or votes of it")
        return Signatures(certificate.view, certificate.signatures[:quorum])

    changes = [
        Change(view.header(height), signatures(height), view.head_at(height).validators) for height in changed
    ]
    blocks = [Proven(view.header(height), signatures(height)) for height in heights]
    links = _links(view, last, checkpoint)
    pack = (FORMAT, VERSION, kind, tuple(changes), tuple(blocks), links, item)
    return encode(SealedPack(*pack, sha256(encode(Pack(*pack)))))


def check_checkpoint(view: StoreView, last: int, checkpoint: int | None) -> None:
    """Return when headers can lead from the proven block `last` to `checkpoint`; raise as `assemble` otherwise."""
    if checkpoint is None:
        return
    if checkpoint < last:
        raise RejectedTransaction(
            "malformed_request", f"a checkpoint lies at or above the proven block {last}, not at {checkpoint}"
        )
    if checkpoint - last > LINKS_MAX:
        raise RejectedTransaction(
            "proof_too_large", f"the checkpoint lies {checkpoint - last} blocks above; {LINKS_MAX} are allowed"
        )
    view.head_at(checkpoint)


def _links(view: StoreView, last: int, checkpoint: int | None) -> tuple[Header, ...]:
    check_checkpoint(view, last, checkpoint)
    return tuple([view.header(height) for height in range(last + 1, (checkpoint or last) + 1)])
