"""The diagnostics bundle of whole nodes: it replays, and nothing secret is in it, however hard one looks."""

import base64
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from consensus.codec import encode
from node.errors import InvalidBlock, RejectedTransaction, Unavailable
from node.ledger import Transaction
from node.runtime.bundle import Bundle, read_bundle
from node.runtime.diagnostics import _without_state_keys
from tests.node.live_network import LiveNetwork, drifting
from tests.simulation.replay import Replay, Result

MARKER = "MARKED-ACCOUNT-7Q"
DOCUMENTS = {
    "evidence.json",
    "limits.json",
    "links.json",
    "members.json",
    "metrics.txt",
    "parameters.json",
    "replica.json",
    "status.json",
    "store.json",
    "versions.json",
    "why.json",
}


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[LiveNetwork]:
    network = LiveNetwork(tmp_path)
    yield network
    await network.stop()


async def settle(network: LiveNetwork, member: str, *transactions: Transaction) -> None:
    async with network.client(member) as client:
        await client.submit_many(transactions)
        for transaction in transactions:
            assert (await client.wait(transaction.tx_id.hex(), timeout_s=30.0)).status == "final"


async def fetched(network: LiveNetwork, member: str, tmp_path: Path) -> tuple[Bundle, bytes]:
    """The member's bundle, and every byte of it: as it is, and unpacked."""
    async with network.client(member) as client:
        data = await client.diagnostics()
    file = tmp_path / f"{member}.zip"
    file.write_bytes(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        unpacked = b"\n".join(archive.read(name) for name in names)
    return read_bundle(file), data + "\n".join(names).encode() + unpacked


def replayed(bundle: Bundle) -> Result:
    result = Replay(bundle).run()
    assert (result.difference, result.fault, bundle.manifest.failure) == ("", "", "")
    assert result.inputs + result.dropped == bundle.manifest.inputs
    assert result.images == len(bundle.parts)
    return result


def assert_absent(everything: bytes, *secrets: bytes) -> None:
    """None of `secrets` is there: raw, in hex or in base64."""
    for secret in secrets:
        assert len(secret) >= 5
        assert secret not in everything
        assert secret.hex().encode() not in everything.lower()
        assert base64.b64encode(secret).rstrip(b"=") not in everything


@pytest.mark.slow
async def test_bundles_replay_through_blocks_a_view_change_and_a_restart_and_hold_no_secret(
    network: LiveNetwork, tmp_path: Path
) -> None:
    await network.start_all()
    transactions = [network.add(f"{MARKER}-{number}", number) for number in range(6)]
    await settle(network, "bank-b", *transactions[:3])
    await network.stop("bank-a")  # the primary
    await settle(network, "bank-b", *transactions[3:])
    await network.start("bank-a")
    await network.until(lambda: network.height("bank-a") == network.height("bank-b"))
    secrets = [
        *(key.seed for key in (network.key, *network._voting.values(), *network._tls.values())),
        MARKER.encode(),
        str(tmp_path).encode(),
        *(transaction.data for transaction in transactions),
        *(transaction.body_bytes for transaction in transactions),
        *(transaction.wire_id for transaction in transactions),
        *(signature.signature for transaction in transactions for signature in transaction.signatures),
    ]
    for member in network.nodes:
        bundle, everything = await fetched(network, member, tmp_path)
        assert bundle.documents.keys() == DOCUMENTS
        assert_absent(everything, *secrets)
        result = replayed(bundle)
        assert result.replica is not None
        assert result.replica.status().height == network.height(member) + 1
        if member != "bank-a":
            # Without bank-a each of the others prepares and commits; before, one may have fetched the block.
            assert result.rules["durable before sent"] >= 2
            assert result.replica.status().view >= 1
        assert msgspec.json.decode(bundle.documents["store.json"])["height"] == network.height(member)


@pytest.mark.slow
async def test_the_state_key_that_a_divergence_names_is_not_in_the_bundle(
    network: LiveNetwork, tmp_path: Path
) -> None:
    await network.start_all(bank_d=drifting(bias=7))
    await settle(network, "bank-a", network.add("odd", 5))
    node = network.nodes["bank-d"]
    await network.until(lambda: "key drifting/counts/odd" in node._divergence.sentence)
    for member in network.nodes:
        bundle, everything = await fetched(network, member, tmp_path)
        assert b"counts/odd" not in everything
        assert b'"odd"' not in everything
        replayed(bundle)
    # What is left says where to look: the member itself still names the key to its own operator.
    assert b"its key is left out" in (await fetched(network, "bank-d", tmp_path))[1]


async def test_a_refusal_quotes_nothing_of_a_malformed_transaction(network: LiveNetwork) -> None:
    await network.start("bank-a")
    body = encode(("live", "bank-a", "r", 1, MARKER, (("settlement", "issue", {}),)))
    malformed = encode((body, ((bytes(32), bytes(64)),)))
    with pytest.raises(RejectedTransaction, match=MARKER):
        Transaction.decode(malformed)
    with pytest.raises(InvalidBlock, match="malformed_transaction") as refused:
        await network.nodes["bank-a"]._chain.verified([malformed])
    assert MARKER not in str(refused.value)


async def test_one_bundle_is_made_at_a_time(network: LiveNetwork) -> None:
    await network.start("bank-a")
    node = network.nodes["bank-a"]
    node._service._diagnostics._busy = True
    with pytest.raises(Unavailable, match="node_busy"):
        await node._service.diagnostics()
    node._service._diagnostics._busy = False
    assert (await node._service.diagnostics())[:2] == b"PK"
    assert (await node._service.diagnostics())[:2] == b"PK"


def test_from_the_key_of_a_divergence_on_nothing_is_passed_on() -> None:
    sentence = f"height 4: state_differs; key settlement/accounts/{MARKER} holds; nothing; key x"
    value = {
        "sentences": [f"It differs: {sentence}"],
        "diverged": {
            "height": 4,
            "key": ["settlement", "accounts", MARKER],
            "our_value_hash": MARKER,
            "their_value_hash": MARKER,
            "sentence": sentence,
        },
    }
    left = _without_state_keys(value)
    assert MARKER not in str(left)
    assert left["diverged"]["height"] == 4
    assert left["sentences"] == ["It differs: height 4: state_differs; its key is left out"]
