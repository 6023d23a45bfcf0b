"""Repair: a stopped node's damaged data made right again from itself, from archives and from its peers."""

from node.repair.directory import OnProgress, Repair
from node.repair.report import RepairReport
from node.repair.sources import ArchiveSource, BlockSource, PeerSource

__all__ = ["ArchiveSource", "BlockSource", "OnProgress", "PeerSource", "Repair", "RepairReport"]
