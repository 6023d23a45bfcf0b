"""What this machine can do at all: the primitives under the ledger, measured in the same run as the ledger."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import plyvel
from nacl.signing import SigningKey

PUTS = 4_000


def measure(directory: Path) -> dict[str, float]:
    """The primitives on one core, with files in `directory`; each name ends in its unit."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        return {
            "ed25519_verify_us": _verify(),
            "ed25519_sign_us": _sign(),
            "sha256_200_bytes_us": _sha256(),
            "python_100_calls_us": _interpreter(),
            "fdatasync_4_kb_us": _fdatasync(Path(scratch)),
            "leveldb_synced_batch_of_4000_puts_ms": round(_leveldb(Path(scratch)) / 1000, 2),
            "cores": float(os.cpu_count() or 1),
        }


def single_call_limit(found: Mapping[str, float], nodes: int) -> float:
    """The most single-call transactions a second of `nodes` nodes on this machine: each verifies them all."""
    return round(found["cores"] * 1e6 / (nodes * found["ed25519_verify_us"]), 1)


def _verify() -> float:
    key = SigningKey.generate()
    signed = key.sign(b"x" * 200)
    verify_key = key.verify_key
    return _each_us(lambda: verify_key.verify(signed.message, signed.signature), 1_000)


def _sign() -> float:
    key = SigningKey.generate()
    return _each_us(lambda: key.sign(b"x" * 200), 1_000)


def _sha256() -> float:
    data = b"x" * 200
    return _each_us(lambda: hashlib.sha256(data).digest(), 50_000)


def _interpreter() -> float:
    """What the same Python source costs differs by a fifth and more between builds of one interpreter."""
    table: dict[int, tuple[int, object]] = {}

    def step(number: int) -> int:
        table[number & 63] = (number, table.get(number >> 1 & 63) is None)
        return number + 1

    def calls() -> None:
        number = 0
        for _ in range(100):
            number = step(number)

    return _each_us(calls, 2_000)


def _fdatasync(scratch: Path) -> float:
    with (scratch / "synced").open("wb", buffering=0) as file:
        descriptor = file.fileno()

        def write_and_sync() -> None:
            os.pwrite(descriptor, b"x" * 4096, 0)
            os.fdatasync(descriptor)

        return _each_us(write_and_sync, 200)


def _leveldb(scratch: Path) -> float:
    database = plyvel.DB(str(scratch / "leveldb"), create_if_missing=True)
    turn = iter(range(1_000_000))

    def write_batch() -> None:
        prefix = b"%08d" % next(turn)
        with database.write_batch(sync=True) as batch:
            for index in range(PUTS):
                batch.put(hashlib.sha256(prefix + b"%d" % index).digest(), prefix * 8)

    try:
        return _each_us(write_batch, 5)
    finally:
        database.close()


def _each_us(work: Callable[[], object], times: int) -> float:
    """Microseconds a run, the best of three series: the machine's ability, not its other load."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(times):
            work()
        best = min(best, (time.perf_counter() - start) / times)
    return round(best * 1e6, 2)
