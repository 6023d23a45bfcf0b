"""A steady load on a running network, and what it shows of the blocks, for tests that change the network."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from node.client import BlockAnswer, Client, call, draft, sign
from node.errors import HansaError
from node.keys import SigningKey
from tests.e2e.conftest import Bank

WAIT_S = 60.0


class Load:
    """bank-a pays a cent again and again until the end, by whichever of these nodes (none named: of all) answers.

    A payment that was begun is sent, the very same body, until it is final: at the end, `paid` are on T-2. Each is
    signed with one of `keys` in turn, and `signed` counts them by the public key.
    """

    def __init__(self, bank: Bank, *members: str) -> None:
        self._bank = bank
        self._members = members
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        self.keys: tuple[SigningKey, ...] = (bank.key,)
        self.signed: Counter[bytes] = Counter()

    @property
    def paid(self) -> int:
        """So many payments are final."""
        return self.signed.total()

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

    def _run(self) -> None:
        try:
            with self._bank.client(*self._members) as client:
                while not self._over.is_set():
                    self._pay(client)
        except BaseException as failure:
            self._failure = failure

    def _pay(self, client: Client) -> None:
        args = {"debtor": "T-1", "creditor": "T-2", "amount": 1}
        body = draft(self._bank.network, "bank-a", [call("settlement.transfer", args)])
        deadline = time.monotonic() + WAIT_S
        while True:
            key = self.keys[self.paid % len(self.keys)]
            try:
                assert client.submit_and_wait(sign(body, [key])).ok
            except HansaError:
                if time.monotonic() > deadline:
                    raise
                continue
            self.signed[key.public] += 1
            return


def until(condition: Callable[[], Any], told: Callable[[], object] = lambda: "not in time") -> None:
    """`condition` holds; fail with what `told` says when it does not in time. A node that starts may not answer."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if condition():
                return
        except HansaError:
            pass
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def blocks_from(url: str, first: int) -> list[BlockAnswer]:
    """The blocks from `first` to the latest."""
    with Client([url]) as client:
        return [client.block(height) for height in range(first, client.status().height + 1)]


def longest_gap_ms(blocks: Sequence[BlockAnswer]) -> int:
    """The longest time from one block to the next."""
    times = [block.header.time_ms for block in blocks]
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0)
