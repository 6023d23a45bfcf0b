"""Archive files: certified blocks with their receipts, in one file that can be verified without a node."""

from node.archive.format import ArchivedBlock, ArchiveHead, MemberChange
from node.archive.importing import ImportReport, give_back, import_archive, require_decided
from node.archive.reader import ArchiveReader
from node.archive.shelf import ArchiveShelf, ShelvedArchive
from node.archive.stored import archive_head, archived_block, archived_blocks
from node.archive.verifying import ArchiveProof, require_no_gap, verify_archive
from node.archive.writer import ArchiveSummary, ArchiveWriter, write_archive

__all__ = [
    "ArchiveHead",
    "ArchiveProof",
    "ArchiveReader",
    "ArchiveShelf",
    "ArchiveSummary",
    "ArchiveWriter",
    "ArchivedBlock",
    "ImportReport",
    "MemberChange",
    "ShelvedArchive",
    "archive_head",
    "archived_block",
    "archived_blocks",
    "give_back",
    "import_archive",
    "require_decided",
    "require_no_gap",
    "verify_archive",
    "write_archive",
]
