"""The node's disk: LevelDB and everything that is kept in it."""

from node.store.layout import ReceiptsRecord
from node.store.store import Store
from node.store.view import StoreView

__all__ = ["ReceiptsRecord", "Store", "StoreView"]
