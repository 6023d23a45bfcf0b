"""What a snapshot's manifest says, and the limits of the format.

Invariant: two honest nodes that make a snapshot of one height make the same `Content`, byte for byte: it is a
function of the ledger alone. Certificates are not (any quorum of signatures does), so they stand beside it and
outside the digest, by which a joining node knows that several peers offer the same snapshot. Chunks are named
by the hash of their content before compression, for two releases of zlib may compress differently.

No state is too large by its shape: a subtree that does not fit into a chunk is parted (frontier.py). Why
SPLITS_MAX is never met: each parting takes more than CHUNK_ROWS_MAX keys or CHUNK_BYTES_MAX bytes below it, and
keys that share so many digits that they take k partings below the level are found by 16 ** k hashes each. 1,024
partings are 250 million keys ground to share 8 digits (2 ** 60 hashes and as many transactions), or a state of
some terabytes, for which the level itself would have to be lowered.
"""

from functools import cached_property
from itertools import accumulate
from typing import Annotated, Final, TypeAlias

import msgspec

from consensus.codec import encode
from consensus.members import Validator
from consensus.messages import VALIDATORS_MAX, Certificate
from node.ledger import Hash, Header, NetworkId, sha256
from node.snapshot.frontier import nodes_of

FORMAT: Final = 1

CHUNK_BYTES_TARGET: Final = 1024 * 1024
"""A chunk takes in subtrees until it would be larger than this, before compression."""
CHUNK_BYTES_MAX: Final = 16 * 1024 * 1024
"""No chunk is larger before compression. A leaf of the tree, 64 values of 64 KiB at most, fits always."""
CHUNK_ROWS_MAX: Final = 250_000
"""No chunk holds more keys: tiny ones would take many times their bytes in memory."""
CHUNK_FILE_BYTES_MAX: Final = CHUNK_BYTES_MAX + 64 * 1024
"""A compressed chunk. Bytes that cannot be compressed grow by less than this."""
MANIFEST_BYTES_MAX: Final = 8 * 1024 * 1024
CHANGES_MAX: Final = 10_000
LEVEL_MAX: Final = 4
"""The lowest level whose nodes a manifest names: 65,536 of them."""
SUBTREE_LEVELS_MAX: Final = 3
"""So many levels lie between a named node and the buckets at most: 4,096 buckets in a subtree."""
SPLITS_MAX: Final = 1_024
"""So many nodes may be parted into their children."""
NODES_MAX: Final = 16**LEVEL_MAX + 15 * SPLITS_MAX
CHUNKS_MAX: Final = NODES_MAX

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Node: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,63}\Z")]
Validators: TypeAlias = Annotated[tuple[Validator, ...], msgspec.Meta(min_length=1, max_length=VALIDATORS_MAX)]


class _Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array."""


class MemberChange(_Item, frozen=True):
    """A block that changed the list of validators: `validators` decide from the height after it on."""

    header: Header
    validators: Validators


class ChunkEntry(_Item, frozen=True):
    """One chunk: how many subtrees it takes in, and size and SHA-256 of its content before compression."""

    subtrees: Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)]
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=CHUNK_BYTES_MAX)]
    sha256: Hash


class Content(_Item, frozen=True, dict=True):
    """All that a snapshot of this height is, whoever made it.

    `header` is the block after which this is the state, `validators` decide the height after it. `changes` are the
    blocks below it that changed the validators, ascending. `subtrees` are the joined hashes of `nodes`: the 16 **
    `level` nodes of that level of the state tree, with their children in the place of those that are `parted`.
    `chunks` take in one after the other. `keys` and `size_bytes` are those of all chunks.
    """

    format: Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
    network: NetworkId
    genesis_hash: Hash
    header: Header
    validators: Validators
    changes: Annotated[tuple[MemberChange, ...], msgspec.Meta(max_length=CHANGES_MAX)]
    tree_bits: Annotated[int, msgspec.Meta(ge=4, le=24, multiple_of=4)]
    level: Annotated[int, msgspec.Meta(ge=1, le=LEVEL_MAX)]
    parted: Annotated[tuple[Node, ...], msgspec.Meta(max_length=SPLITS_MAX)]
    subtrees: Annotated[bytes, msgspec.Meta(max_length=32 * NODES_MAX)]
    chunks: Annotated[tuple[ChunkEntry, ...], msgspec.Meta(min_length=1, max_length=CHUNKS_MAX)]
    keys: Count

    @property
    def height(self) -> int:
        """The height after whose block this is the state."""
        return self.header.height

    @property
    def size_bytes(self) -> int:
        """The size of all chunks before compression."""
        return sum([chunk.size_bytes for chunk in self.chunks])

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The subtrees in their order; ValueError where `parted` names what cannot be parted."""
        return nodes_of(self.level, self.parted)

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(accumulate([chunk.subtrees for chunk in self.chunks], initial=0))

    @cached_property
    def digest(self) -> bytes:
        """The snapshot's name: equal for all honest makers of this height."""
        return sha256(b"hansa/snapshot" + encode(self))

    def first_subtree(self, index: int) -> int:
        """The number of the first subtree of the chunk `index`."""
        return self._firsts[index]

    def chunk_nodes(self, index: int) -> tuple[str, ...]:
        """The subtrees of the chunk `index`."""
        return self.nodes[self._firsts[index] : self._firsts[index + 1]]

    def subtree_hash(self, number: int) -> bytes:
        """The hash of one subtree."""
        return self.subtrees[32 * number : 32 * number + 32]


class Manifest(_Item, frozen=True):
    """The content with its proofs: the certificate of each change, in order, then that of the header."""

    content: Content
    certificates: Annotated[tuple[Certificate, ...], msgspec.Meta(min_length=1, max_length=CHANGES_MAX + 1)]

    @property
    def certificate(self) -> Certificate:
        """The proof that the snapshot's block was decided."""
        return self.certificates[-1]


def level_of(tree_bits: int, size_bytes: int) -> int:
    """The level whose nodes a manifest names, for a state of that size: chunks come out at about their target."""
    depth = tree_bits // 4
    level = max(1, depth - SUBTREE_LEVELS_MAX)
    while level < min(depth, LEVEL_MAX) and size_bytes > CHUNK_BYTES_TARGET * 16**level:
        level += 1
    return level
