"""Every kind of evidence pack through HTTP from four living nodes, judged by the stand-alone verifier."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import hansa_verify
import httpx
import pytest

from node.client import call, draft, sign
from node.config import dump_network
from node.errors import NotFound, RejectedTransaction
from node.ledger import Transaction
from tests.node.live_network import LiveNetwork

pytestmark = pytest.mark.slow

UETR = "00000000-0000-4000-8000-{:012d}"


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[LiveNetwork]:
    live = LiveNetwork(tmp_path, empty_block_interval_ms=200, retention_ms=600_000)
    await live.start_all()
    yield live
    await live.stop()


def payments(network: LiveNetwork, *amounts: int, expires_in_ms: int = 60_000) -> Transaction:
    """One transaction that pays each of `amounts` from A to B."""
    calls = [
        call("settlement.transfer", {"debtor": "A", "creditor": "B", "amount": amount, "uetr": UETR.format(amount)})
        for amount in amounts
    ]
    body = draft(network.network.network_id, "bank-a", calls, expires_in_ms=expires_in_ms)
    return sign(body, [network.key])


async def test_all_kinds_are_made_through_http_and_accepted(network: LiveNetwork) -> None:
    genesis = dump_network(network.network).encode()
    async with network.client("bank-a") as client:
        for name in ("A", "B"):
            await client.call("settlement.open_account", {"account": name, "owner": "bank-a", "currency": "USD"})
        issued = await client.call("settlement.issue", {"account": "A", "amount": 1_000})
        paid = payments(network, 1, 2, 3)
        fate = await client.submit_and_wait(paid)
        assert (fate.ok, issued.ok) == (True, True)
        assert issued.height is not None
        assert fate.height is not None
        tx_id = paid.tx_id.hex()

        pack = await client.prove_transaction(tx_id)
        assert hansa_verify.verify(pack, genesis, None, f"transaction:{tx_id}").blocks[0].height == fate.height
        for height, kind in ((issued.height, "absence"), (fate.height, "state"), (None, "state")):
            pack = await client.prove_state("settlement", "movements", UETR.format(2), at_height=height)
            assert hansa_verify.verify(pack, genesis).kind == kind
        pack = await client.prove_statement("A", issued.height, fate.height)
        assert len(hansa_verify.verify(pack, genesis, None, "statement:A").details) >= 3

        paid_at = fate.height
        await network.until(lambda: network.height("bank-a") >= paid_at + 3)
        later = await client.block(paid_at + 2)
        pack = await client.prove_transaction(tx_id, checkpoint=later.height)
        hansa_verify.verify(pack, genesis, f"{later.height}:{later.digest}", f"transaction:{tx_id}")

        with pytest.raises(NotFound, match="block_not_found"):
            await client.prove_state("settlement", "accounts", "A", at_height=10**9)
        with pytest.raises(RejectedTransaction, match="transaction_executed"):
            await client.prove_not_executed(paid)


async def test_a_payment_that_expired_while_the_network_stood_still_is_proven_not_executed(
    network: LiveNetwork,
) -> None:
    genesis = dump_network(network.network).encode()
    await network.until(lambda: network.height("bank-a") >= 1)
    await network.stop("bank-c", "bank-d")
    async with network.client("bank-a") as client:
        lost = payments(network, 7, expires_in_ms=1_500)
        tx_id = lost.tx_id.hex()
        assert (await client.submit(lost)).status == "pending"
        with pytest.raises(RejectedTransaction, match="not_expired_yet"):
            await client.prove_not_executed(tx_id)
        while True:
            # Two of four decide nothing; once the expiry is past, no block that the four decide can contain it.
            try:
                await client.dry_run(lost)
            except RejectedTransaction as error:
                if error.code == "expired":
                    break
            await asyncio.sleep(0.05)
        for member in ("bank-c", "bank-d"):
            await network.start(member)
        assert (await client.wait(tx_id)).status == "expired"
        pack = await client.prove_not_executed(tx_id)
        hansa_verify.verify(pack, genesis, None, f"not_executed:{tx_id}")
        # Another node never saw it: it makes the same proof from the transaction itself.
        async with network.client("bank-b") as other:
            pack = await other.prove_not_executed(lost)
        hansa_verify.verify(pack, genesis, None, f"not_executed:{tx_id}")
        with pytest.raises(RejectedTransaction, match="wrong_proof_height"):
            await client.prove_not_executed(lost, at_height=1)


async def test_bad_requests_are_refused_with_their_reason(network: LiveNetwork) -> None:
    await network.until(lambda: network.height("bank-a") >= 2)
    none, nobody = "0" * 64, "/v1/proofs/transaction/zz"
    for path, status, code in (
        ("/v1/proofs/state", 400, "malformed_request"),
        ("/v1/proofs/state?key=xy", 400, "malformed_request"),
        ("/v1/proofs/state?key=", 400, "malformed_request"),
        ("/v1/proofs/state?key=00&contract=settlement&field=accounts", 400, "malformed_request"),
        ("/v1/proofs/state?contract=settlement&field=accounts", 400, "invalid_arguments"),
        ("/v1/proofs/state?contract=settlement&field=nothing&part=A", 404, "unknown_field"),
        ("/v1/proofs/state?key=00&at=0", 404, "block_not_found"),
        ("/v1/proofs/state?key=00&at=-1", 400, "malformed_request"),
        ("/v1/proofs/state?key=00&at=2&checkpoint=1", 400, "malformed_request"),
        ("/v1/proofs/state?key=00&at=1&checkpoint=99999999", 413, "proof_too_large"),
        (nobody, 400, "malformed_request"),
        (f"/v1/proofs/transaction/{none}", 404, "transaction_not_found"),
        (f"/v1/proofs/not-executed/{none}", 404, "transaction_not_kept"),
        ("/v1/proofs/statement/A", 400, "malformed_request"),
        ("/v1/proofs/statement/A?from=5&to=5", 400, "malformed_request"),
        ("/v1/proofs/statement/A?from=1&to=2", 404, "account_not_found"),
    ):
        async with httpx.AsyncClient(base_url=network.urls("bank-a")[0], trust_env=False) as http:
            answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
    async with httpx.AsyncClient(base_url=network.urls("bank-a")[0], trust_env=False) as http:
        for content, kind, status, code in (
            (b"{}", "application/json", 415, "unsupported_media_type"),
            (b"", "application/msgpack", 400, "malformed_request"),
            (b"\x01", "application/msgpack", 400, "malformed_request"),
            (b"\xc4\x01\x00", "application/msgpack", 400, "malformed_transaction"),
        ):
            answer = await http.post("/v1/proofs/not-executed", content=content, headers={"content-type": kind})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), content
