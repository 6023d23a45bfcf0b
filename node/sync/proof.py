"""What a peer's answer must be before a block of it may be applied: pure checks, from bytes up to the quorum."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from consensus.codec import CodecError, decode
from consensus.members import Members
from consensus.messages import Certificate, VoteKind
from node.config import NO_RECOVERIES, Recoveries
from node.errors import InvalidFrame
from node.ledger import CertifiedBlock, content_root
from node.wire import BLOCK_SIZE_MAX

Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""Whether `verify(key, message, signature)` holds; called from threads too."""


class Candidate(msgspec.Struct, frozen=True):
    """A block whose bytes are whole and fit its certificate's digest.

    `proven_by` is the member list that the certificate was verified against (where survivors decided the height, it
    is the list whose place they took); None when it did not satisfy the list known at that time (which may be
    right: the list may change within a range).
    """

    block: CertifiedBlock
    digest: bytes
    proven_by: Members | None

    @property
    def height(self) -> int:
        """The block's height."""
        return self.block.body.header.height


def open_range(
    blocks: Sequence[bytes],
    first: int,
    network: str,
    members: Members,
    verify: Verify,
    recoveries: Recoveries = NO_RECOVERIES,
) -> list[Candidate]:
    """Return the blocks `first`, `first` + 1, … in `blocks`, linked to one another and each whole.

    `members` is the newest list known. Raise InvalidFrame (the sender is at fault) when a block is not canonical,
    not the one at its place, not of `network`, or when header, transactions and certificate do not fit together.
    """
    candidates: list[Candidate] = []
    for height, data in enumerate(blocks, first):
        try:
            block = decode(data, CertifiedBlock, size_max=BLOCK_SIZE_MAX)
        except CodecError as error:
            raise InvalidFrame("bad_catch_up", f"block {height} is not readable: {error}") from error
        header = block.body.header
        digest = header.digest
        if header.network != network:
            raise InvalidFrame("bad_catch_up", f"block {height} belongs to network {header.network}")
        if header.height != height:
            raise InvalidFrame("bad_catch_up", f"block {header.height} stands in the place of block {height}")
        if candidates and header.parent != candidates[-1].digest:
            raise InvalidFrame("bad_catch_up", f"block {height} does not follow block {height - 1}")
        if header.tx_root != content_root(block.body.transactions, block.body.quarantined):
            raise InvalidFrame("bad_catch_up", f"block {height} has other transactions than its header says")
        certificate = block.certificate
        if (certificate.height, certificate.digest) != (height, digest):
            raise InvalidFrame("bad_catch_up", f"block {height} carries a certificate of something else")
        decided = _decided(certificate, network, members, verify, recoveries)
        candidates.append(Candidate(block, digest, members if decided else None))
    return candidates


def prove_again(
    candidates: Sequence[Candidate], members: Members, verify: Verify, recoveries: Recoveries = NO_RECOVERIES
) -> list[Candidate]:
    """Return the candidates, judged by `members` after the list of members has changed."""
    judged: list[Candidate] = []
    for candidate in candidates:
        network = candidate.block.body.header.network
        decided = _decided(candidate.block.certificate, network, members, verify, recoveries)
        judged.append(msgspec.structs.replace(candidate, proven_by=members if decided else None))
    return judged


def require_proof(
    candidate: Candidate, parent: bytes, members: Members, recoveries: Recoveries = NO_RECOVERIES
) -> None:
    """The candidate follows `parent` and was decided by `members`, its height's list; else raise InvalidFrame.

    `recovery_not_trusted`: it is a block of a history that `recoveries` do not lead to.
    """
    height = candidate.height
    objection = recoveries.objection(height, candidate.digest, candidate.block.body.header.proposer)
    if objection:
        raise InvalidFrame("recovery_not_trusted", objection)
    if candidate.block.body.header.parent != parent:
        raise InvalidFrame("other_history", f"block {height} does not follow this node's block {height - 1}")
    if candidate.proven_by != members:
        raise InvalidFrame("bad_catch_up", f"block {height} has no certificate of the members of its height")


def _decided(
    certificate: Certificate, network: str, members: Members, verify: Verify, recoveries: Recoveries
) -> bool:
    # A verifier of its own: the replica's keeps a cache, which is not for threads.
    return recoveries.verifier(network, verify).certificate(certificate, VoteKind.COMMIT, members)
