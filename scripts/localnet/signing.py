"""One process that signs a part of a load before it is sent: whole HTTP requests, laid out in a file.

python -m scripts.localnet.signing    the order as one line of JSON on stdin, the part as JSON on stdout
"""

import os
import sys
from pathlib import Path

import msgspec

from scripts.localnet.batches import WAIT_S, batch
from scripts.localnet.sender import Part
from scripts.localnet.workload import SETUP_EXPIRES_MS, Questions, Seeds, Shape, Workload


class Order(msgspec.Struct, frozen=True):
    """Make `requests` requests of `workload` from the transaction of number `first` on, into the file `path`."""

    workload: Workload
    shape: Shape
    seeds: Seeds
    first: int
    requests: int
    path: str
    expires_in_ms: int = SETUP_EXPIRES_MS


def carry_out(order: Order) -> Part:
    """The file holds the requests."""
    keys = order.seeds.keys()
    sizes = []
    count = order.shape.transactions_per_request
    with Path(order.path).open("wb") as file:
        for request in range(order.requests):
            first = order.first + request * count
            if isinstance(order.workload, Questions):
                data = http_get(order.workload.address(first))
            else:
                make = order.workload.transaction
                signed = [
                    make(number, order.shape, order.seeds.network, keys, order.expires_in_ms).data
                    for number in range(first, first + count)
                ]
                data = http_post(f"/v1/transactions?wait=final&timeout_s={WAIT_S}", batch(signed))
            file.write(data)
            sizes.append(len(data))
        # Else the system writes them to the nodes' disk half a minute later, which delays the nodes' own writes.
        file.flush()
        os.fsync(file.fileno())
    return Part(order.path, tuple(sizes))


def http_get(address: str) -> bytes:
    """A whole request."""
    return f"GET {address} HTTP/1.1\r\nhost: node\r\n\r\n".encode()


def http_post(address: str, body: bytes) -> bytes:
    """A whole request with a MessagePack body."""
    head = f"POST {address} HTTP/1.1\r\nhost: node\r\ncontent-type: application/msgpack\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    """Carry out one order."""
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    print(msgspec.json.encode(carry_out(order)).decode())


if __name__ == "__main__":
    main()
