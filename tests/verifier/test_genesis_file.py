"""hansa-verify reads network.toml as the node does, to the last byte of its hash."""

import random
from pathlib import Path
from typing import Any

import hansa_verify
import msgspec
import pytest
from hansa_verify import Refused

from node.config import (
    MemberConfig,
    NetworkConfig,
    Parameters,
    PrincipalConfig,
    check_network,
    dump_network,
    load_network,
)
from node.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "network.toml"


def random_network(chance: random.Random, roles: tuple[str, ...] = ("validator",)) -> NetworkConfig:
    """A network definition as one could be, with strange texts among the contracts' arguments."""

    def plain(depth: int) -> Any:
        kinds = 6 if depth else 4
        match chance.randrange(kinds):
            case 0:
                return chance.choice((0, 1, -1, 127, 128, 255, 256, 65_536, -129, 2**63 - 1, -(2**63)))
            case 1:
                return chance.choice((True, False))
            case 2 | 3:
                return "".join(chance.choices("az09 \"\\'\x7f\tüß🜚\u200b", k=chance.randrange(40)))
            case 4:
                return [plain(depth - 1) for _ in range(chance.randrange(20))]
            case _:
                keys = ["".join(chance.choices("abz_Ü🜚-", k=chance.randrange(1, 5))) for _ in range(5)]
                return {key: plain(depth - 1) for key in keys}

    members = tuple(
        MemberConfig(
            f"bank-{index}",
            "validator" if index == 0 else chance.choice(roles),  # type: ignore[arg-type]
            f"host-{index}:7600",
            chance.randbytes(32),
            chance.randbytes(32),
        )
        for index in range(chance.randrange(1, 9))
    )
    principals = []
    for number in chance.sample(range(20), chance.randrange(5)):
        keys = tuple(chance.randbytes(32) for _ in range(chance.randrange(1, 5)))
        member = chance.choice(members).id
        principals.append(PrincipalConfig(f"{member}/p{number}", keys, chance.randrange(1, len(keys) + 1)))
    parameters = msgspec.structs.replace(
        Parameters(),
        state_tree_bits=chance.choice((4, 8, 12, 16, 20, 24)),
        retention_ms=chance.randrange(1_000, 10**9),
        rotation_heights=chance.randrange(1, 10**9),
    )
    contracts = {f"contract_{number}": {"a": plain(2), "ä": plain(1)} for number in range(chance.randrange(3))}
    return NetworkConfig("trial-net", members, tuple(principals), parameters, contracts)


def agrees(text: str, directory: Path) -> None:
    """The verifier reads the file as the node does."""
    path = directory / "network.toml"
    path.write_text(text)
    network = load_network(path)
    found = hansa_verify.read_network(path.read_bytes())
    assert found.genesis_hash == network.genesis_hash
    assert found.network_id == network.network_id
    assert found.validators == [[row.id, row.voting_key] for row in network.validators]
    assert found.state_tree_bits == network.parameters.state_tree_bits
    assert found.retention_ms == network.parameters.retention_ms


def test_the_genesis_file_means_what_it_means_to_the_node(tmp_path: Path) -> None:
    agrees((SAMPLE).read_text(), tmp_path)
    for seed in range(12):
        network = random_network(random.Random(seed), roles=("validator", "observer", "regulator"))
        check_network(network)
        lines = dump_network(network).splitlines()
        chance = random.Random(seed)
        kept = [line for line in lines if not _is_default(line) or chance.randrange(2)]
        agrees("\n".join(kept), tmp_path)


def _is_default(line: str) -> bool:
    name, _, value = line.partition(" = ")
    return name in Parameters.__struct_fields__ and value == str(getattr(Parameters(), name))


def test_every_parameter_has_the_nodes_default() -> None:
    assert msgspec.structs.asdict(Parameters()) == hansa_verify.PARAMETERS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state_tree_bits = 16", "state_tree_bits = 17"),
        ("state_tree_bits = 16", "state_tree_bits = true"),
        ("retention_ms = 86_400_000", "retention_ms = 1.5"),
        ("retention_ms = 86_400_000", "retention_ms = 1e10"),
        ("retention_ms = 86_400_000", "retention = 5"),
        ('name = "sample"', "name = 5"),
        ('role = "validator"', 'role = "observer"'),
        ("4e31eb98", "4e31eb9"),
        ("4e31eb98d76216a70e96b1c86e75d6284e922d54cd66216ad42f22bcb8d3efc3",
         "f52a6b73d9e9a701b243636bb27b13b3417d76af1e526180b039c53cba2ebaac"),
        ('id = "bank-b"\nrole', 'id = "bank-a"\nrole'),
        ("exponent = 2", "exponent = 2020-01-01"),
        ("exponent = 2", "exponent = nan"),
        ("[network]", "[network"),
        ("[[members]]", "[[institutions]]"),
    ],
)  # fmt: skip
def test_a_wrong_genesis_file_is_refused(old: str, new: str) -> None:
    text = (SAMPLE).read_text()
    assert old in text
    with pytest.raises(Refused):
        hansa_verify.read_network(text.replace(old, new).encode())


def test_a_deep_genesis_file_is_refused() -> None:
    with pytest.raises(Refused):
        hansa_verify.read_network(b"a = " + b"[" * 5_000 + b"]" * 5_000)
    with pytest.raises(Refused):
        hansa_verify.read_network(b"\xff\xfe")


def test_what_the_node_refuses_has_no_other_hash_here(tmp_path: Path) -> None:
    """A key that the node does not know is refused by both, where it would go into the hash."""
    text = (SAMPLE).read_text().replace("drift_ms", "drifting_ms")
    path = tmp_path / "network.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_network(path)
    with pytest.raises(Refused):
        hansa_verify.read_network(text.encode())


def test_an_observer_does_not_decide() -> None:
    network = random_network(random.Random(5), roles=("validator", "observer", "regulator"))
    voting = [member.id for member in network.members if member.role == "validator"]
    found = hansa_verify.read_network(dump_network(network).encode())
    assert [name for name, _ in found.validators] == voting
