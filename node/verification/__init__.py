"""The stopped node's whole ledger, read again and, where it can be, executed again; nothing in it is believed."""

from node.verification.directory import Depth, OnProgress, verify_directory, verify_rows
from node.verification.files import FileReport, verify_archives, verify_snapshot_directory
from node.verification.replay import genesis_head
from node.verification.report import LedgerReport

__all__ = [
    "Depth",
    "FileReport",
    "LedgerReport",
    "OnProgress",
    "genesis_head",
    "verify_archives",
    "verify_directory",
    "verify_rows",
    "verify_snapshot_directory",
]
