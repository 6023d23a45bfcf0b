"""What a changed key costs: blocks of 4,000 random keys over a state of one million, tree and LevelDB included.

It is the store's part of applying a block: undo record, values and the tree's rows in one synced batch, written
through the shipped database and tree. What stood under a key before comes with the block: execution has read it.
That read is measured beside it. Random keys are the worst there is: hardly two of a block share a bucket.
"""

import gc
import os
import random
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from consensus.codec import encode
from node.state_tree import StateTree
from node.store import Database, LevelDatabase
from node.store.layout import UndoRecord, number
from node.store.tree_rows import read_bucket, staged_rows
from scripts.localnet.processes import usage

KEYS = 1_000_000
BITS = 20
BLOCK_KEYS = 4_000
BLOCKS = 60
NEW_KEYS = BLOCK_KEYS // 8
"""So many of a block's keys are new: a request record for every transaction, accounts now and then."""
VALUE_SIZE_BYTES = 120
BUDGET_US = 25.0
SEED = 1


class StateBench(msgspec.Struct, frozen=True):
    """Microseconds a changed key, medians over `blocks` blocks; `p90_us` of their sums; memory of this process.

    `tree_us`: hashing and reading buckets; `write_us`: the synced batch with its share of compaction; `total_us` is
    their sum. `read_us` is the read of a value by execution, no part of it. `rss_mb` is the peak while blocks were
    applied, `tree_mb` what the levels alone take.
    """

    keys: int
    bits: int
    block_keys: int
    blocks: int
    tree_us: float
    write_us: float
    read_us: float
    total_us: float
    p90_us: float
    budget_us: float
    tree_mb: float
    rss_mb: float
    disk_mb: float


def measure(directory: Path, console: Console) -> StateBench:
    """Fill an empty `directory` with a million keys, then change BLOCK_KEYS of them a block."""
    chance = random.Random(SEED)
    database = LevelDatabase(directory)
    tree = StateTree(BITS, partial(read_bucket, database))
    try:
        with Progress(console=console, transient=True) as progress:
            filling = progress.add_task(f"{KEYS:,} keys", total=KEYS)
            for start in range(0, KEYS, BLOCK_KEYS):
                _apply(database, tree, start, {_key(at): _value(chance) for at in range(start, start + BLOCK_KEYS)})
                progress.advance(filling, BLOCK_KEYS)
            gc.collect()
            gc.freeze()  # as a node does once it stands
            tree_us, write_us, read_us = [], [], []
            task = progress.add_task(f"{BLOCKS} blocks of {BLOCK_KEYS:,} changed keys", total=BLOCKS)
            for block in range(BLOCKS):
                new = range(KEYS + block * NEW_KEYS, KEYS + (block + 1) * NEW_KEYS)
                chosen = [*chance.sample(range(KEYS), BLOCK_KEYS - NEW_KEYS), *new]
                spent = _apply(database, tree, KEYS + block, {_key(at): _value(chance) for at in chosen})
                tree_us.append(spent[0] * 1e6 / BLOCK_KEYS)
                write_us.append(spent[1] * 1e6 / BLOCK_KEYS)
                read_us.append(spent[2] * 1e6 / BLOCK_KEYS)
                progress.advance(task)
        used = usage(os.getpid())
        totals = [tree_part + write_part for tree_part, write_part in zip(tree_us, write_us, strict=True)]
        return StateBench(
            keys=KEYS,
            bits=BITS,
            block_keys=BLOCK_KEYS,
            blocks=BLOCKS,
            tree_us=round(statistics.median(tree_us), 1),
            write_us=round(statistics.median(write_us), 1),
            read_us=round(statistics.median(read_us), 1),
            total_us=round(statistics.median(totals), 1),
            p90_us=round(statistics.quantiles(totals, n=10)[-1], 1),
            budget_us=BUDGET_US,
            tree_mb=round(32 * 2**BITS * 16 / 15 / 1024**2, 1),
            rss_mb=0.0 if used is None else round(used.rss_mb, 1),
            disk_mb=round(sum(file.stat().st_size for file in directory.iterdir()) / 1024**2, 1),
        )
    finally:
        gc.unfreeze()
        database.close()


def _apply(
    database: Database, tree: StateTree, block: int, changes: Mapping[bytes, bytes]
) -> tuple[float, float, float]:
    """One block's changes are durable; returns the seconds that the tree, the batch and the reads before took."""
    began_s = time.perf_counter()
    before = tuple((key, database.get(b"s" + key)) for key in sorted(changes))
    read_s = time.perf_counter()
    staged = tree.stage(changes)
    staged_s = time.perf_counter()
    rows: list[tuple[bytes, bytes | None]] = [(b"s" + key, value) for key, value in changes.items()]
    rows += staged_rows(staged)
    rows.append((b"u" + number(block), encode(UndoRecord(before))))
    database.write(rows)
    written_s = time.perf_counter()
    tree.commit(staged)
    committed_s = time.perf_counter()
    return staged_s - read_s + committed_s - written_s, written_s - staged_s, read_s - began_s


def _key(at: int) -> bytes:
    return encode(("settlement", "accounts", f"ACCOUNT-{at:09d}"))


def _value(chance: random.Random) -> bytes:
    return chance.randbytes(VALUE_SIZE_BYTES)
