"""What a test network is founded with: parameters from the command line, by the rules of network.toml."""

from pathlib import Path

import msgspec
import pytest

from node.config import Parameters, dump_network
from node.errors import ConfigError
from scripts.localnet.founding import read_parameters, require_parameters
from scripts.localnet.layout import Layout, TestnetError
from tests.node.ledger_world import network


def test_parameters_that_are_not_named_are_those_of_every_network() -> None:
    assert read_parameters([]) == Parameters()
    given = read_parameters(["retention_ms=2_000", "snapshot_blocks=0"])
    assert given == Parameters(retention_ms=2_000, snapshot_blocks=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["retention_ms"], "write NAME=VALUE"),
        (["retention_ms=long"], "write NAME=VALUE"),
        (["retention_ms=" + "9" * 20], "write NAME=VALUE"),
        (["retention_ms=2000", "retention_ms=3000"], "retention_ms: has two values"),
        (["retention=2000"], r"retention is not a known key; did you mean retention_ms\?"),
        (["retention_ms=1"], "retention_ms is wrong: expected `int` >= 1000"),
        (["base_timeout_ms=20000"], r"timeout_cap_ms is below base_timeout_ms; raise it"),
    ],
)
def test_what_no_network_may_have_is_refused_in_one_line(given: list[str], said: str) -> None:
    with pytest.raises((ConfigError, TestnetError), match=said) as refused:
        read_parameters(given)
    assert "--parameter" in str(refused.value)


def test_a_founded_network_keeps_its_parameters(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    known = msgspec.structs.replace(network(), parameters=Parameters(retention_ms=2_000))
    layout.network_file.write_text(dump_network(known))
    require_parameters(layout, [])
    require_parameters(layout, ["retention_ms=2000", "snapshot_blocks=10000"])
    with pytest.raises(TestnetError, match="holds a network with retention_ms = 2000, not 3000"):
        require_parameters(layout, ["retention_ms=3000"])
