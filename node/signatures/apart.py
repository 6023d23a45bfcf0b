"""Verifying many signatures in a process of its own.

Why not in a thread: libsodium lets go of the interpreter lock for each signature and has to get it back, for which
it waits up to a switch interval while the node executes; so a thread beside a busy one verifies a third of what it
could, and interrupts the other one thousands of times a second.

The process is asked over a socket: four bytes of length and a MessagePack array of [key, message, signature]; it
answers with a byte for each, 1 where `verify` says yes. It reads and writes nothing else, and ends when the node
does: the node's end of the socket closes with it, however it ends. Where it fails or does not answer, its work is
done in the asking thread: it never changes a verdict, only how long one takes (PATIENCE_S longer where it hangs).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from node.signatures.verifying import Signed, verify_many

PATIENCE_S: Final = 5.0
"""So long it may take for what is asked at once, and to start: what the node asks takes it a tenth of a second."""
REST_S: Final = 60.0
"""After a failure no other process is started for so long: one that cannot live would cost a start each time."""
LENGTH_SIZE: Final = 4


class VerifyingProcess:
    """Verifies for one thread at a time. The process starts with the first question, and anew after a failure."""

    def __init__(
        self, on_failure: Callable[[OSError], None], patience_s: float = PATIENCE_S, rest_s: float = REST_S
    ) -> None:
        """Nothing is started yet. `on_failure` hears, in the asking thread, why that does the work for a while."""
        self._on_failure = on_failure
        self._patience_s = patience_s
        self._rest_s = rest_s
        self._rests_until_s = float("-inf")
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process that was started last, None before."""
        return None if self._process is None else self._process.pid

    def verify_many(self, items: Sequence[Signed]) -> list[bool]:
        """Return what `verifying.verify_many` returns."""
        if time.monotonic() >= self._rests_until_s:
            try:
                return self._ask(items)
            except BaseException as error:
                # Whatever it was: what may still be answered on this link would pass for the next answer.
                self.close()
                if not isinstance(error, OSError):
                    raise
                self._rests_until_s = time.monotonic() + self._rest_s
                self._on_failure(error)
        return verify_many(items)

    def close(self) -> None:
        """The process is gone."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ask(self, items: Sequence[Signed]) -> list[bool]:
        link = self._link or self._start()
        asked = msgspec.msgpack.encode(items)
        link.settimeout(self._patience_s)
        link.sendall(len(asked).to_bytes(LENGTH_SIZE, "big") + asked)
        said = receive(link, len(items))
        if said is None:
            raise ConnectionError("it ended")
        return [verdict == 1 for verdict in said]

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # Kept before the start, so that `close` ends it where that fails.
        self._link = ours
        with theirs:
            # A process group of its own: what an operator types is for the node. In the node's session, with which
            # Linux shares out time.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "node.signatures"],
                stdin=theirs.fileno(),
                stderr=subprocess.DEVNULL,  # the node's log is one JSON document a line
                env=without_secrets(os.environ),
                process_group=0,
            )
        return ours


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without what is for the node alone: it may hold the passphrase of the keys."""
    return {name: value for name, value in environment.items() if not name.startswith("HANSA_")}


def serve(link: socket.socket) -> None:
    """Answer what is asked over `link` until the other end closes."""
    while (length := receive(link, LENGTH_SIZE)) is not None:
        asked = receive(link, int.from_bytes(length, "big"))
        if asked is None:
            return
        link.sendall(bytes(verify_many(msgspec.msgpack.decode(asked, type=list[Signed]))))


def receive(link: socket.socket, size: int) -> bytes | None:
    """Return the next `size` bytes, or None where the other end closes before."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = link.recv_into(rest)
        if not count:
            return None
        rest = rest[count:]
    return bytes(data)
