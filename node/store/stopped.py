"""The ledger of a node that does not run, for commands that read or mend it in the node's place."""

from node.config import NetworkConfig, NodeConfig
from node.errors import ConfigError
from node.store.database import holds_database
from node.store.layout import META_ADOPTING
from node.store.store import Store


def open_stopped(node: NodeConfig, network: NetworkConfig) -> Store:
    """Return the store of the stopped node.

    Raise ConfigError where there is none yet, or one in the making (`ledger_not_here`), or a running node holds it.
    """
    if not holds_database(node.data_dir):
        raise ConfigError(
            "ledger_not_here", f"{node.data_dir} is empty: start the node once and stop it, then do this"
        )
    store = Store(
        node.data_dir,
        network.network_id,
        network.genesis_hash,
        node.retention.history_blocks,
        signed=node.signed_file,
    )
    if any(store.rows(META_ADOPTING, META_ADOPTING + b"\0")):
        store.close()
        raise ConfigError(
            "ledger_not_here", "a snapshot is being taken over: start the node, it goes on with that; and stop it"
        )
    return store
