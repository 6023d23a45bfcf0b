"""Everything that executes contracts: blocks, admission, dry runs, queries. Pure."""

from node.executor.ahead import AheadView
from node.executor.difference import Claim, Difference
from node.executor.executor import DryRun, Executor
from node.executor.queries import NotBrief
from node.executor.run import Policy, Registry, request_of

__all__ = ["AheadView", "Claim", "Difference", "DryRun", "Executor", "NotBrief", "Policy", "Registry", "request_of"]
