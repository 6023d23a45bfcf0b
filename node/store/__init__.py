"""The node's disk: LevelDB and everything that is kept in it."""

from node.store.database import Database, LevelDatabase, salvage
from node.store.forgetting import forget_votes
from node.store.layout import DivergenceRecord, Execution, ReceiptsRecord, RecoveryPromise
from node.store.store import Store
from node.store.view import StoreView

__all__ = [
    "Database",
    "DivergenceRecord",
    "Execution",
    "LevelDatabase",
    "ReceiptsRecord",
    "RecoveryPromise",
    "Store",
    "StoreView",
    "forget_votes",
    "salvage",
]
