"""Whether a snapshot is what its manifest says, and whether the manifest is one of this network: from genesis up.

What is trusted: the network's definition (its genesis hash and first validators) and that of no list of
validators a quorum ever signed two blocks of one height. A list whose members gave up their keys since could
sign another history from its own last height on; a joining node therefore compares what several peers offer
(node/sync/snapshots.py).
"""

from collections.abc import Callable
from typing import TypeAlias

from consensus.codec import CodecError, decode
from consensus.members import Members
from consensus.messages import Certificate, VoteKind
from consensus.verification import Verifier
from node.config import NO_RECOVERIES, Recoveries
from node.errors import HansaError, InvalidFrame
from node.ledger import Header, members_hash
from node.snapshot.chunks import open_chunk
from node.snapshot.folder import SnapshotFolder
from node.snapshot.frontier import level_hashes
from node.snapshot.manifest import FORMAT, MANIFEST_BYTES_MAX, Content, Manifest, Validators
from node.state_tree import fold, root_over
from node.store import StoreView

Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""Whether `verify(key, message, signature)` holds."""


def read_manifest(data: bytes) -> Manifest:
    """Return the manifest in `data`; raise InvalidFrame("snapshot_corrupt") when there is none."""
    try:
        return decode(data, Manifest, size_max=MANIFEST_BYTES_MAX)
    except CodecError as error:
        raise InvalidFrame("snapshot_corrupt", f"the manifest cannot be read: {error}") from error


def verify_manifest(
    manifest: Manifest,
    network: str,
    genesis_hash: bytes,
    founders: Members,
    tree_bits: int,
    verify: Verify,
    recoveries: Recoveries = NO_RECOVERIES,
) -> Members:
    """Return the validators that the height before the snapshot's names, when the manifest proves itself.

    They decided the snapshot's height, unless survivors of a recovery did so in their place.

    `founders` decide height 1 of `network`, whose state tree has 2 ** `tree_bits` buckets. Raise InvalidFrame:
    `snapshot_foreign` for another network's or one that strangers certified, `recovery_not_trusted` for one of a
    history that `recoveries` do not lead to, `snapshot_corrupt` for one that contradicts itself.
    """
    content = manifest.content
    if content.format != FORMAT:
        raise _corrupt(f"the manifest has format {content.format}; this release reads {FORMAT}")
    if (content.network, content.genesis_hash) != (network, genesis_hash):
        raise _foreign(f"it belongs to {content.network} with genesis {content.genesis_hash.hex()[:16]}")
    if len(manifest.certificates) != len(content.changes) + 1:
        raise _corrupt("the manifest has more or fewer certificates than blocks")
    verifier = recoveries.verifier(network, verify)
    members, height = founders, 0
    for change, certificate in zip(content.changes, manifest.certificates[:-1], strict=True):
        if not height < change.header.height < content.height:
            raise _corrupt("its changes of members are out of order")
        _require_history(change.header, recoveries)
        _require_decided(change.header, certificate, members, network, verifier)
        if change.validators == members.validators:
            # A genuine block, but no honest maker names it, and whoever adopted it would prove with it in vain.
            raise _corrupt(f"block {change.header.height} changed no validators")
        members, height = _following(change.header, change.validators), change.header.height
    left_out = recoveries.passed_over(content.height - 1, [change.header.height for change in content.changes])
    if left_out is not None:
        raise InvalidFrame("recovery_not_trusted", f"it leaves out the recovery at block {left_out.height}")
    _require_history(content.header, recoveries)
    _require_decided(content.header, manifest.certificate, members, network, verifier)
    _following(content.header, content.validators)
    _check_tree(content, tree_bits)
    return members


def require_own_past(content: Content, view: StoreView) -> None:
    """Up to the head of `view` the manifest names exactly the blocks that changed validators there.

    Whoever holds blocks needs to trust less than genesis: keys that were given away before its own head prove
    nothing to it. Raise InvalidFrame("snapshot_foreign").
    """
    last = min(view.head.height, content.height - 1)
    ours = [(height, view.head_at(height).digest) for height in view.member_changes() if height <= last]
    changes = [change.header for change in content.changes]
    if [(header.height, header.digest) for header in changes if header.height <= last] != ours:
        raise _foreign(f"up to height {last} other blocks changed the validators than here")


def require_keys(content: Content, keys: int) -> None:
    """All chunks of `content`, each proven, hold `keys` keys, as the manifest says.

    No certificate covers the number, and by it room is made for what is taken over: it has to be counted. Raise
    InvalidFrame("snapshot_corrupt").
    """
    if keys != content.keys:
        raise _corrupt(f"the manifest names {content.keys} keys, and its chunks hold {keys}")


def verify_snapshot(
    folder: SnapshotFolder,
    network: str,
    genesis_hash: bytes,
    founders: Members,
    tree_bits: int,
    verify: Verify,
    progress: Callable[[int, int], None] = lambda done, total: None,
    recoveries: Recoveries = NO_RECOVERIES,
) -> Content:
    """Return what the snapshot on disk is of, when every byte of it proves itself; `progress` gets chunks done.

    Raise InvalidFrame as `verify_manifest` and `open_chunk` do, naming the directory; StoreError when it cannot be
    read.
    """
    try:
        manifest = read_manifest(folder.manifest_bytes())
        verify_manifest(manifest, network, genesis_hash, founders, tree_bits, verify, recoveries)
        total, keys = len(manifest.content.chunks), 0
        for index in range(total):
            progress(index, total)
            data = folder.chunk(index)
            if data is None:
                raise _corrupt(f"chunk {index} is missing")
            keys += len(open_chunk(data, manifest.content, index).rows)
        require_keys(manifest.content, keys)
        progress(total, total)
    except InvalidFrame as error:
        raise _named(error, folder) from error
    return manifest.content


def _require_history(header: Header, recoveries: Recoveries) -> None:
    objection = recoveries.objection(header.height, header.digest, header.proposer)
    if objection:
        raise InvalidFrame("recovery_not_trusted", objection)


def _require_decided(
    header: Header, certificate: Certificate, members: Members, network: str, verifier: Verifier
) -> None:
    if header.network != network:
        raise _foreign(f"block {header.height} belongs to {header.network}")
    if (certificate.height, certificate.digest) != (header.height, header.digest):
        raise _corrupt(f"the certificate beside block {header.height} is that of another block")
    if not verifier.certificate(certificate, VoteKind.COMMIT, members):
        raise _foreign(f"block {header.height} was not certified by the validators of its height")


def _following(header: Header, validators: Validators) -> Members:
    """The validators after the block; the header has to name them."""
    try:
        members = Members(validators)
    except ValueError as error:
        raise _corrupt(f"the validators after block {header.height}: {error}") from error
    if members_hash(members) != header.members_hash:
        raise _corrupt(f"the validators after block {header.height} are not those that its header names")
    return members


def _check_tree(content: Content, tree_bits: int) -> None:
    """The subtrees lead to the certified root, and the chunks take in each of them once."""
    if content.tree_bits != tree_bits or not content.level <= tree_bits // 4:
        raise _corrupt(f"its state tree has {content.tree_bits} bits and level {content.level}")
    try:
        count = len(content.nodes)
    except ValueError as error:
        raise _corrupt(str(error)) from error
    if len(content.subtrees) != 32 * count:
        raise _corrupt(f"it names {len(content.subtrees) // 32} subtrees of {count}")
    hashes = level_hashes(content.subtrees, content.nodes, content.parted)
    if root_over(tree_bits, fold(hashes)) != content.header.state_root:
        raise _corrupt("its subtrees do not lead to the certified state root")
    if sum([chunk.subtrees for chunk in content.chunks]) != count:
        raise _corrupt("its chunks do not take in every subtree once")


def _corrupt(what: str) -> InvalidFrame:
    return InvalidFrame("snapshot_corrupt", what)


def _foreign(what: str) -> InvalidFrame:
    return InvalidFrame("snapshot_foreign", what)


def _named(error: HansaError, folder: SnapshotFolder) -> InvalidFrame:
    return InvalidFrame(error.code, f"{folder.path}: {error.message}", path=str(folder.path))
