"""Releases of a node that do something wrong, each made of the shipped parts but for the one thing."""

from collections.abc import Callable
from typing import Any
from unittest import mock

from contracts.engine import Engine, Environment, Outcome, State
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


class MiscountingEngine(Engine):
    """Every transfer moves one minor unit more than was said."""

    def execute(
        self,
        state: State,
        env: Environment,
        contract: str,
        method: str,
        args: dict[str, Any],
        operations_max: int,
    ) -> Outcome:
        """The outcome of the call, wrongly."""
        if method == "transfer":
            args = {**args, "amount": args["amount"] + 1}
        return super().execute(state, env, contract, method, args, operations_max)


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
