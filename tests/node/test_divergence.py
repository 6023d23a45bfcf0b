"""A node that executes otherwise than the network loses its vote and nothing else, and says what differs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.api.marking import HEADER
from node.client.answers import DivergenceAnswer
from node.errors import HansaError
from node.ledger import Transaction
from tests.node.live_network import SOURCE, LiveNetwork, drifting

ODD = "bank-d"
"""The member whose execution differs."""
OTHERS = ("bank-a", "bank-b", "bank-c")


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[LiveNetwork]:
    network = LiveNetwork(tmp_path)
    yield network
    await network.stop()


async def settle(network: LiveNetwork, *transactions: Transaction, by: str = "bank-b") -> None:
    """The transactions are final at a healthy member."""
    async with network.client(by) as client:
        await client.submit_many(transactions)
        for transaction in transactions:
            assert (await client.wait(transaction.tx_id.hex(), timeout_s=30.0)).status == "final"


async def found(network: LiveNetwork, odd: str = ODD) -> DivergenceAnswer:
    """What the odd member's status says, once it has compared its execution with a proof."""
    async with network.client(odd) as client:
        async with asyncio.timeout(30.0):
            while True:
                diverged = (await client.status()).diverged
                if diverged is not None and diverged.compared_with is not None:
                    return diverged
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_it_names_the_first_differing_transaction_contract_and_key(network: LiveNetwork) -> None:
    await network.start_all(bank_d=drifting(bias=7))
    await settle(network, network.add("even", 1))
    await network.until(lambda: network.height(ODD) == network.height("bank-b"))
    height = network.height(ODD)
    transactions = [network.add("even", 1), network.add("odd", 5), network.add("even", 2), network.add("odd", 1)]
    await settle(network, *transactions)
    diverged = await found(network)
    assert diverged.height > height
    assert diverged.code == "state_differs"
    assert diverged.compared_with in OTHERS
    assert (diverged.contract, diverged.method) == ("drifting", "add")
    assert diverged.tx_id in {transaction.tx_id.hex() for transaction in (transactions[1], transactions[3])}
    assert diverged.key == ("drifting", "counts", "odd")
    assert diverged.our_value_hash != diverged.their_value_hash
    assert diverged.differing_keys == 1
    # The others go on without it, and it stays where it was.
    await settle(network, network.add("even", 10))
    await network.until(lambda: network.height("bank-a") > diverged.height)
    assert network.height(ODD) == diverged.height - 1
    status = network.nodes[ODD]._driver.status()
    assert "its execution differs" in status.abstaining
    assert network.nodes[ODD]._metrics.text().count(b"hansa_diverged %.1f" % diverged.height) == 1


@pytest.mark.slow
async def test_a_primary_whose_proposals_nobody_can_reproduce_diverges_at_the_next_ones_block(
    network: LiveNetwork,
) -> None:
    await network.start_all(bank_a=drifting(bias=7))
    assert network.nodes["bank-b"]._driver.status().primary == "bank-a"
    transaction = network.add("odd", 5)
    await settle(network, transaction)
    diverged = await found(network, "bank-a")
    assert (diverged.tx_id, diverged.contract) == (transaction.tx_id.hex(), "drifting")
    assert diverged.key == ("drifting", "counts", "odd")
    await settle(network, network.add("odd", 1))
    assert network.height("bank-a") == diverged.height - 1


@pytest.mark.slow
async def test_its_reads_are_marked_and_it_takes_no_transactions(network: LiveNetwork) -> None:
    await network.start_all(bank_d=drifting(bias=7))
    await settle(network, network.add("even", 1))
    await settle(network, network.add("odd", 5))
    diverged = await found(network)
    async with network.client(ODD) as client:
        answer = await client.query("drifting.count", {"name": "even"})
        assert (answer.value, answer.diverged_at) == (1, diverged.height)
        response = await client._http.get(f"{client._urls[0]}/readyz")
        assert response.status_code == 503
        assert response.headers[HEADER] == str(diverged.height)
        assert "execution differs" in response.text
        why = " ".join((await client.why()).sentences)
        assert f"height {diverged.height}" in why
        assert "drifting.add" in why
    odd = network.nodes[ODD]._service
    [refusal] = await odd.submit([network.add("even", 1).data])
    assert isinstance(refusal, HansaError)
    assert (refusal.code, refusal.entry.retryable) == ("diverged", True)


@pytest.mark.slow
async def test_an_outcome_that_differs_is_named_by_both_codes(network: LiveNetwork) -> None:
    await network.start_all(bank_d=drifting(limit=50))
    transactions = [
        network.add("even", 1),
        network.add("some", 20, "add_some"),
        network.add("other", 70, "add_some"),
    ]
    await settle(network, *transactions)
    diverged = await found(network)
    assert diverged.code == "receipts_differ"
    assert diverged.tx_id == transactions[2].tx_id.hex()
    assert (diverged.our_code, diverged.their_code) == ("too_much", "ok")
    assert diverged.exact
    assert diverged.key == ("drifting", "counts", "other")
    assert diverged.our_value_hash is None


@pytest.mark.slow
async def test_the_right_code_executes_the_block_again_and_the_member_votes(network: LiveNetwork) -> None:
    await network.start_all(bank_d=drifting(bias=7))
    await settle(network, network.add("odd", 5))
    diverged = await found(network)
    # The finding outlives a restart, and so does the silence.
    await network.stop(ODD)
    await network.start(ODD, drifting(bias=7))
    assert network.nodes[ODD]._divergence.answer() == diverged
    assert "its execution differs" in network.nodes[ODD]._driver.status().abstaining
    await network.until(lambda: network.nodes[ODD]._catching_up._diverged)
    await network.stop(ODD)
    await network.start(ODD)
    await network.until(lambda: network.height(ODD) == network.height("bank-b"))
    await network.until(lambda: not network.nodes[ODD]._driver.status().abstaining)
    assert network.nodes[ODD]._divergence.answer() is None
    # Its vote is needed now.
    await network.stop("bank-c")
    await settle(network, network.add("odd", 1))
    await network.until(lambda: network.height(ODD) == network.height("bank-b"))


@pytest.mark.slow
async def test_other_code_that_comes_to_the_same_roots_follows_without_a_vote(network: LiveNetwork) -> None:
    await network.start_all()
    await settle(network, network.add("even", 1))
    await network.stop(ODD)
    await network.start(ODD, drifting(source=SOURCE + "\n# another release\n"))
    await network.until(lambda: "tests_drifting" in network.nodes[ODD]._driver.status().abstaining)
    for number in range(3):
        await settle(network, network.add("odd", number))
        await network.until(lambda: network.height(ODD) == network.height("bank-b"))
    async with network.client(ODD) as client:
        # It executes what it has at hand, once that is decided: the others send it nothing twice.
        sync = (await client.status()).sync
        assert sync is not None
        assert sync.blocks == 0
        assert (await client.query("drifting.count", {"name": "odd"})).value == 3
        assert "contract code" in " ".join((await client.why()).sentences)
        assert not (await client.status()).voting
    assert network.nodes[ODD]._divergence.answer() is None
