"""Recovery files: what the survivors of a lost quorum sign, and what a person supplies who trusts them."""

from node.recovery.file import Countersignature, RecoveryFile
from node.recovery.trust import load_trusted, read_recovery_file, trusted

__all__ = ["Countersignature", "RecoveryFile", "load_trusted", "read_recovery_file", "trusted"]
