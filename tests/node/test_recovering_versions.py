"""A recovery executes the versions of contracts that the ledger has made active, also those shipped besides."""

from pathlib import Path

import msgspec
import pytest

from contracts import CONTRACTS
from node.config import NodeConfig, dump_network, load_network
from node.errors import ConfigError
from node.rescue import Survivor, Terms, apply_recovery
from tests.node.evidence_world import VOTING
from tests.node.ledger_world import network
from tests.node.lifecycle_world import TALLY_1, TALLY_2, Versions

AB = ("bank-a", "bank-b")


def test_a_recovery_goes_on_with_a_version_that_is_shipped_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who lacked the active version drafted a block that commits to other code; others like it would sign that."""
    plain = network("testnet")
    members = [msgspec.structs.replace(item, voting_key=VOTING[item.id].public) for item in plain.members]
    (tmp_path / "network.toml").write_text(dump_network(msgspec.structs.replace(plain, members=tuple(members))))
    config = load_network(tmp_path / "network.toml")
    where = tmp_path / "bank-a"
    addresses = ("127.0.0.1:7600", "127.0.0.1:7700")
    node = NodeConfig("bank-a", where / "data", where / "keys", tmp_path / "network.toml", *addresses)
    ledger = Versions(node.data_dir, TALLY_2, config=config)
    ledger.decide_change("upgrade_contract", 2, ledger.height + 8)
    ledger.grow(12)
    assert (ledger.version.version, ledger.add("b"), ledger.count("b")) == (2, ["ok"], 2)
    code, time_ms = ledger.executor.contracts_hash, ledger.now_ms + 60_000
    ledger.store.close()

    terms = Terms(AB, "the others are gone", time_ms, accepts_few=True)
    for module in ("survivor", "applying"):
        monkeypatch.setattr(f"node.rescue.{module}.CONTRACTS", (*CONTRACTS, TALLY_1))
    with Survivor.opened(node, config) as survivor, pytest.raises(ConfigError, match=r"contract_not_here.*tally 2"):
        survivor.draft(terms)
    for module in ("survivor", "applying"):
        monkeypatch.setattr(f"node.rescue.{module}.FURTHER", (TALLY_2,))
    with Survivor.opened(node, config) as survivor:
        file = survivor.sign(survivor.draft(terms), VOTING["bank-a"], time_ms)
    other = msgspec.structs.replace(node, member="bank-b")
    with Survivor.opened(other, config) as survivor:
        file = survivor.sign(file, VOTING["bank-b"], time_ms)
    assert file.header.contracts_hash == code
    path = tmp_path / "recovery.json"
    path.write_bytes(file.encode())
    assert apply_recovery(node, path)[1] == file.header.height
    ledger = Versions(node.data_dir, TALLY_2, config=config)
    assert (ledger.height, ledger.version.version, ledger.count("b")) == (file.header.height, 2, 2)
    ledger.store.close()
