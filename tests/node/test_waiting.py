"""Waiting for many transactions at once: who is woken, when, and what is left behind."""

import asyncio
from typing import cast

import msgspec

from consensus.codec import encode
from node.ledger import CallReceipt, Receipt
from node.runtime.waiting import Waiters
from node.state import ExecutedBlock

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))


class Executed(msgspec.Struct):
    """What the waiters read of a block."""

    height: int
    tx_ids: tuple[bytes, ...]
    receipts: tuple[bytes, ...]


def receipt(tx_id: bytes) -> Receipt:
    return Receipt(tx_id, (CallReceipt("ok", ()),))


def block(height: int, *tx_ids: bytes) -> ExecutedBlock:
    return cast(ExecutedBlock, Executed(height, tx_ids, tuple(encode(receipt(tx_id)) for tx_id in tx_ids)))


async def test_a_wait_for_many_ends_with_the_last_of_them() -> None:
    waiters = Waiters()
    wait = asyncio.create_task(waiters.wait([A, B, C, A], 60))
    await asyncio.sleep(0)
    waiters.on_applied(block(7, B, b"x" * 32), ())
    waiters.on_applied(block(8, A), ())
    await asyncio.sleep(0)
    assert not wait.done()
    waiters.on_applied(block(9), [C])
    assert await wait == {A: (8, receipt(A)), B: (7, receipt(B))}, "one that ended otherwise has no place"
    assert not waiters._waits


async def test_several_wait_for_one_transaction() -> None:
    waiters = Waiters()
    waits = [asyncio.create_task(waiters.wait([A], 60)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[1].cancel()
    await asyncio.sleep(0)
    waiters.on_applied(block(2, A), ())
    assert [await wait for wait in (waits[0], waits[2])] == [{A: (2, receipt(A))}] * 2
    assert not waiters._waits


async def test_a_wait_that_timed_out_has_what_was_said_until_then_and_is_forgotten() -> None:
    waiters = Waiters()
    wait = asyncio.create_task(waiters.wait([A, B], 0.01))
    await asyncio.sleep(0)
    waiters.on_applied(block(3, B), ())
    assert await wait == {B: (3, receipt(B))}
    assert not waiters._waits
    assert await waiters.wait([], 60) == {}
