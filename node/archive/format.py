"""What an archive file consists of, byte for byte: docs/archive.md tells it in words.

Invariant: no byte of a file can be changed without notice. The tail holds the hashes of head, member lists, block
index and transaction index; the block index holds the hash of every block; nothing lies between the parts.
"""

import struct
from typing import Annotated, Final, Literal

import msgspec

from consensus.members import Validator
from consensus.messages import VALIDATORS_MAX, Certificate
from node.errors import StoreError
from node.ledger import CertifiedBlock, Hash, Header, Height, NetworkId
from node.store import ReceiptsRecord

MAGIC: Final = b"HANSAARC"
HEAD_SIZE: Final = struct.Struct(">8sI")
"""Magic and the size of the head that follows."""
BLOCK_ROW: Final = struct.Struct(">QII32s")
"""Of a block: offset in the file, size there, size when inflated, SHA-256 of the bytes in the file."""
TRANSACTION_ROW: Final = struct.Struct(">32sII")
"""Of a transaction: id, height minus the first, position among the block's receipts. Ascending by id."""
TAIL: Final = struct.Struct(">QQQQQQ32s32s32s32s")
"""First, last, offset of the block index, of the transaction index, of the member lists, size of the member lists;
SHA-256 of head, block index, transaction index, member lists. Behind it stand its own SHA-256 and the magic."""
TAIL_SIZE: Final = TAIL.size + 32 + len(MAGIC)

HEAD_SIZE_MAX: Final = 64 * 1024 * 1024
LISTS_SIZE_MAX: Final = 64 * 1024 * 1024
BLOCK_PLAIN_SIZE_MAX: Final = 96 * 1024 * 1024
"""Of a block with its receipts, inflated: as much as the store would hold. Deflated it is no larger."""

ValidatorList = Annotated[tuple[Validator, ...], msgspec.Meta(min_length=1, max_length=VALIDATORS_MAX)]


class _Item(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array."""


class MemberChange(_Item, frozen=True):
    """A certified header after whose block other `validators` decide than decided it."""

    header: Header
    certificate: Certificate
    validators: ValidatorList


class ArchiveHead(_Item, frozen=True):
    """What an archive begins with: whose ledger it is, where it starts, and who decided its first block.

    `parent` is the header of `first` - 1 (None at height 1, whose parent is genesis). `validators` decide `first`.
    `changes` are all blocks below `first` that changed the validators, ascending: with them anybody who has the
    network definition comes from the validators of genesis to those of `first`.
    """

    tag: Literal["hansa/archive"]
    version: Literal[1]
    network: NetworkId
    genesis_hash: Hash
    first: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    parent: Header | None
    validators: ValidatorList
    changes: tuple[MemberChange, ...]


class StoredBlock(_Item, frozen=True):
    """What is deflated of each block."""

    block: CertifiedBlock
    receipts: ReceiptsRecord


class MemberList(_Item, frozen=True):
    """The validators that decide `height` + 1 and the heights after it, up to the next list."""

    height: Height
    validators: ValidatorList


class ArchivedBlock(msgspec.Struct, frozen=True):
    """A block as an archive gives it back: with its certificate, its receipts and who decides the next height."""

    block: CertifiedBlock
    receipts: ReceiptsRecord
    validators: tuple[Validator, ...]

    @property
    def height(self) -> int:
        """The block's height."""
        return self.block.body.header.height


def damaged(path: object, what: str) -> StoreError:
    """Return the error that says what of the file at `path` cannot be right."""
    return StoreError("archive_damaged", f"{path}: {what}")
