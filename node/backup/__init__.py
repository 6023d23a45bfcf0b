"""Backups of a running node, and data directories made from them. docs/backup.md describes the format."""

from node.backup.making import Backup
from node.backup.manifest import BackupManifest, read_manifest
from node.backup.report import BackupReport
from node.backup.restoring import Restore, RestoreReport

__all__ = ["Backup", "BackupManifest", "BackupReport", "Restore", "RestoreReport", "read_manifest"]
