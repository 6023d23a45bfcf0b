"""The subtrees that a snapshot names: all nodes of one level of the state tree and, in the place of each that holds
more than a chunk may, its sixteen children.

A node is written as the hex digits that the hashes of all keys below it begin with. A bucket of more than 64 pairs
is parted by the next digit as inner nodes are (node/state_tree.py), so a way goes down as far as keys share
digits: whoever makes keys to fit, and whatever grows, only makes more chunks. Pure.
"""

from collections.abc import Sequence
from itertools import pairwise

from node.ledger import sha256

_LAST = "f"


def first_node(level: int) -> str:
    """Return the first node of a level."""
    return "0" * level


def next_node(node: str, level: int) -> str:
    """Return the node that follows after `node` and all that is below it, as high as `level` allows; "" at the
    end."""
    above = node.rstrip(_LAST)
    if not above:
        return ""
    return (above[:-1] + f"{int(above[-1], 16) + 1:x}").ljust(level, "0")


def nodes_of(level: int, parted: Sequence[str]) -> tuple[str, ...]:
    """Return the nodes of `level` in their order, with children in the place of those that are `parted`.

    Raise ValueError unless `parted` ascends and names nothing but nodes that are there to be parted.
    """
    if any(left >= right for left, right in pairwise(parted)):
        raise ValueError("its parted nodes do not ascend")
    nodes: list[str] = []
    node, met = first_node(level), 0
    while node:
        if met < len(parted) and parted[met] == node:
            met += 1
            node += "0"
        else:
            nodes.append(node)
            node = next_node(node, level)
    if met < len(parted):
        raise ValueError(f"it parts {parted[met]}, which is no node of its level or below a parted one")
    return tuple(nodes)


def level_hashes(hashes: bytes, nodes: Sequence[str], parted: Sequence[str]) -> bytes:
    """Return the joined hashes of the level itself: `hashes` are those of its `nodes`, as `nodes_of` gives them."""
    if not parted:
        return hashes
    known = {node: hashes[32 * at : 32 * at + 32] for at, node in enumerate(nodes)}
    for node in reversed(parted):
        known[node] = sha256(b"".join([known.pop(f"{node}{child:x}") for child in range(16)]))
    return b"".join([known[node] for node in sorted(known)])
