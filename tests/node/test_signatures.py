"""Verifying in another process: the verdicts are those of libsodium here, whatever becomes of that process."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.keys import SigningKey
from node.signatures import Signed, verify_many
from node.signatures.apart import VerifyingProcess

KEY = SigningKey(bytes(range(32)))


def signed(count: int, length: int = 200) -> list[Signed]:
    """Signatures of which every third is good, and the others are bad in every way that there is."""
    chance = random.Random(count)
    items: list[Signed] = []
    for number in range(count):
        message = chance.randbytes(length)
        signature = KEY.sign(message)
        other = SigningKey(chance.randbytes(32)).public
        bad: list[Signed] = [
            (KEY.public, message + b"x", signature),
            (other, message, signature),
            (KEY.public, message, signature[:-1] + bytes([signature[-1] ^ 1])),
            (KEY.public, message, signature[:63]),
            (KEY.public[:31], message, signature),
            (KEY.public, signature[-1:] + message, signature[:-1]),
            (b"", b"", b""),
        ]
        items.append((KEY.public, message, signature) if number % 3 == 0 else bad[number % len(bad)])
    return items


@pytest.fixture
def failures() -> list[OSError]:
    return []


@pytest.fixture
def process(failures: list[OSError]) -> Iterator[VerifyingProcess]:
    made = VerifyingProcess(failures.append, patience_s=20.0, rest_s=0.0)
    yield made
    made.close()


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 20
    while not true() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return true()


@pytest.mark.parametrize(("count", "length"), [(0, 0), (1, 0), (70, 200), (400, 1), (3, 4_000_000)])
def test_the_verdicts_are_those_of_this_process(
    process: VerifyingProcess, failures: list[OSError], count: int, length: int
) -> None:
    items = signed(count, length)
    assert process.verify_many(items) == verify_many(items)
    assert process.verify_many(items[::-1]) == verify_many(items[::-1])
    assert failures == []
    assert process.pid is not None
    assert lives(process.pid)


def test_a_process_that_was_killed_changes_no_verdict_and_another_takes_its_place(
    process: VerifyingProcess, failures: list[OSError]
) -> None:
    items = signed(70)
    process.verify_many(items)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: not lives(first))
    assert process.verify_many(items) == verify_many(items)
    assert len(failures) == 1
    assert process.verify_many(items) == verify_many(items)
    assert len(failures) == 1
    assert process.pid not in (None, first)


def test_a_process_that_does_not_answer_is_given_up(failures: list[OSError]) -> None:
    process = VerifyingProcess(failures.append, patience_s=0.2, rest_s=60.0)
    items = signed(7)
    assert process.verify_many(items) == verify_many(items)
    pid = process.pid
    assert pid is not None
    if not failures:  # on a busy machine its start alone may take longer than this patience
        os.kill(pid, signal.SIGSTOP)
        assert process.verify_many(items) == verify_many(items)
    assert isinstance(failures[0], TimeoutError)
    assert not lives(pid)
    # For a while nobody tries again.
    assert process.verify_many(items) == verify_many(items)
    assert (len(failures), process.pid) == (1, pid)
    process.close()


def test_a_process_that_cannot_be_started_changes_no_verdict(
    failures: list[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = VerifyingProcess(failures.append, rest_s=60.0)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    items = signed(70)
    assert process.verify_many(items) == verify_many(items)
    assert isinstance(failures[0], FileNotFoundError)
    assert process.verify_many(items) == verify_many(items)
    assert len(failures) == 1
    process.close()


def test_an_answer_that_nobody_took_is_no_answer_to_the_next_question(
    process: VerifyingProcess, failures: list[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = signed(1) * 3, [(KEY.public, b"", bytes(64))] * 3
    assert process.verify_many(good) == [True] * 3

    def out_of_memory(*given: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("node.signatures.apart.receive", out_of_memory)
        with pytest.raises(MemoryError):
            process.verify_many(good)
    assert process.verify_many(bad) == [False] * 3
    assert failures == []


def test_the_process_knows_no_passphrase(process: VerifyingProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSA_PASSPHRASE", "a secret")
    monkeypatch.setenv("HANSA_PASSPHRASE_FILE", "/a/secret")
    process.verify_many(signed(3))
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"secret" not in environment


def test_a_closed_one_is_gone(process: VerifyingProcess) -> None:
    process.verify_many(signed(70))
    pid = process.pid
    assert pid is not None
    process.close()
    assert not lives(pid)
    process.close()


NODE = """
import sys, time
from node.signatures.apart import VerifyingProcess
process = VerifyingProcess(lambda error: None)
process.verify_many([])
print(process.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_the_node_however_that_ends_and_not_by_what_an_operator_types() -> None:
    node = subprocess.Popen([sys.executable, "-P", "-c", NODE], stdout=subprocess.PIPE, start_new_session=True)
    with node:
        try:
            assert node.stdout is not None
            pid = int(node.stdout.readline())
            assert os.getpgid(pid) != os.getpgid(node.pid), "Ctrl-C goes to the node's group"
            assert os.getsid(pid) == os.getsid(node.pid)
        finally:
            node.kill()
    assert wait_until(lambda: not lives(pid))
