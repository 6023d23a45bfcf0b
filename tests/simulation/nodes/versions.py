"""Further versions of settlement that every node of a governed run ships: they do the same, after a migration."""

import functools
from pathlib import Path

import pytest

from contracts.loader import load_source
from contracts.sdk import Contract
from node.config import NetworkConfig, NodeConfig
from node.runtime.node import Node
from node.runtime.surroundings import Surroundings

CONTRACT = "settlement"
VERSION_MAX = 3
SDK = "from contracts.sdk import (\n    Item,\n    migration,\n"
BEGINS = '''    version = {version}
    seen: Item[int] = Item()

    @migration
    def begin(self, ctx: Context) -> None:
        """The accounts are counted."""
        self.seen.set(len(ctx.former(Former).accounts.scan()))

'''


@functools.cache
def further() -> tuple[type[Contract], ...]:
    """The versions after the first, each of which takes over from the one before."""
    source = (Path(__file__).parents[3] / "contracts" / "settlement.py").read_text()
    made: list[type[Contract]] = []
    for version in range(2, VERSION_MAX + 1):
        former = "contracts.settlement" + (f"_{version - 1}" if version > 2 else "")
        text = source.replace("from contracts.sdk import (\n", f"from {former} import Settlement as Former\n" + SDK)
        text = text.replace("    version = 1\n", BEGINS.format(version=version))
        made.append(load_source(f"contracts.settlement_{version}", text).Settlement)
    return tuple(made)


def make_node(config: NodeConfig, network: NetworkConfig, outside: Surroundings) -> Node:
    """A node of a release that ships them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node.runtime.node.FURTHER", further())
        return Node(config, network, outside)
