"""A stopped node's part in recovering a network whose quorum is lost for good (docs/recovery.md)."""

from node.rescue.applying import apply_recovery, perform_recoveries
from node.rescue.survivor import Survivor, Terms, preferred

__all__ = ["Survivor", "Terms", "apply_recovery", "perform_recoveries", "preferred"]
