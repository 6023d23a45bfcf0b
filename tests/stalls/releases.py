"""Releases of a node that do something wrong, each made of the shipped parts but for the one thing."""

from collections.abc import Callable
from typing import Any
from unittest import mock

from contracts.engine import Engine
from contracts.sdk import Method
from node.config import NetworkConfig, NodeConfig
from node.ledger import Transaction
from node.runtime.node import Node
from node.runtime.surroundings import Surroundings

LEFT_OUT = "bank-1"


class OtherEngine(Engine):
    """Its settlement module has another digest."""

    def manifest(self) -> tuple[str, ...]:
        """The lines whose digest is the contracts hash."""
        return tuple(
            f"{line.rpartition(' ')[0]} {'0' * 64}"
            if "settlement" in line and len(line.split()[-1]) == 64
            else line
            for line in super().manifest()
        )


class _Miscounted(Method):
    """A method whose third argument is one more than was said."""

    def __init__(self, genuine: Method) -> None:
        super().__init__(genuine.contract, genuine.name, genuine.function)

    def convert(self, args: dict[str, Any]) -> tuple[Any, ...]:
        """The typed arguments, wrongly."""
        debtor, creditor, amount, *others = super().convert(args)
        return debtor, creditor, amount + 1, *others


class MiscountingEngine(Engine):
    """Every transfer moves one minor unit more than was said."""

    def find(self, contract: str, method: str, kind: str) -> Method:
        """The method, which counts wrongly where it is a transfer."""
        found = super().find(contract, method, kind)
        return _Miscounted(found) if method == "transfer" else found


def other_code(config: NodeConfig, network: NetworkConfig, outside: Surroundings) -> Node:
    """A node of a release with another settlement module."""
    with mock.patch("node.runtime.node.Engine", OtherEngine):
        return Node(config, network, outside)


def miscounting(config: NodeConfig, network: NetworkConfig, outside: Surroundings) -> Node:
    """A node that executes otherwise and does not know it."""
    with mock.patch("node.runtime.node.Engine", MiscountingEngine):
        return Node(config, network, outside)


def censoring(config: NodeConfig, network: NetworkConfig, outside: Surroundings) -> Node:
    """A node that leaves the payments of LEFT_OUT out of its blocks."""
    return _choosing(config, network, outside, lambda item: item.body.sender != LEFT_OUT)


def idling(config: NodeConfig, network: NetworkConfig, outside: Surroundings) -> Node:
    """A node that builds no block."""
    return _choosing(config, network, outside, lambda _: False)


def _choosing(
    config: NodeConfig, network: NetworkConfig, outside: Surroundings, takes: Callable[[Transaction], bool]
) -> Node:
    node = Node(config, network, outside)
    candidates = node._bodies.candidates
    node._bodies.candidates = lambda: [item for item in candidates() if takes(item)]  # type: ignore[method-assign]
    return node
