"""The running node: owns the parts, steps the replica, performs its effects."""

from node.runtime.process import run

__all__ = ["run"]
