"""What a node is given by the machine it runs on: clocks, threads, a disk, links, clients, its signature.

A node's parts know nothing else of the outside. Whoever gives other surroundings runs the same node: so the
simulator runs many of them in one process, in virtual time.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from consensus.messages import INSTANCE_SIZE
from node.api import ApiLimits, ApiServer, NodeService
from node.config import NetworkConfig, NodeConfig, split_address
from node.errors import ConfigError
from node.keys import SigningKey
from node.peers import PeerHandler, Peers, Transport
from node.runtime.clock import Clock
from node.runtime.service import VERSION
from node.runtime.threads import Threads, WorkerThreads
from node.signatures import verify
from node.snapshot import Cut, cut, cut_apart
from node.store import Database, LevelDatabase
from node.store.room import free_bytes

Sign: TypeAlias = Callable[[bytes], bytes]
Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]


class Api(Protocol):
    """Where clients reach the node's service, from `start` to `stop`."""

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""

    async def start(self) -> None:
        """Requests are answered from now on; raise ConfigError when the address cannot be listened on."""

    async def stop(self) -> None:
        """No request is answered any more."""


@dataclass(frozen=True)
class Surroundings:
    """The outside of one node.

    `open_transport` gets whom to tell and the contracts' hash; its links begin with `start`. `sign` makes this
    member's votes; `verify` (key, message, signature) judges everybody's and may be called from threads.
    `cut_snapshot` makes chunks of the rows that were set aside for a snapshot.
    `disk_free` tells how many bytes are left for a directory (None: nobody can tell).
    `further_keys` sign with other voting keys of this member, by their public keys: one may come into force.
    `tls_keys` are the public keys of links that are at hand.
    `keys_made_ms` says of each public key at hand when it was made (Unix milliseconds).
    `instance` tells this process from others with the same key: 16 bytes drawn at its start (empty: nothing does).
    """

    clock: Clock
    threads: Threads
    open_database: Callable[[Path], Database]
    open_transport: Callable[[PeerHandler, bytes], Transport]
    open_api: Callable[[NodeService], Api]
    sign: Sign
    verify: Verify
    instance: bytes = b""
    disk_free: Callable[[Path], int | None] = free_bytes
    cut_snapshot: Cut = cut
    further_keys: Mapping[bytes, Sign] = field(default_factory=dict)
    tls_keys: frozenset[bytes] = frozenset()
    keys_made_ms: Mapping[bytes, int] = field(default_factory=dict)


def this_machine(
    config: NodeConfig,
    network: NetworkConfig,
    voting_key: SigningKey,
    tls_key: SigningKey,
    further_keys: Sequence[SigningKey] = (),
    further_tls_keys: Sequence[SigningKey] = (),
) -> Surroundings:
    """Return the real surroundings: LevelDB, TLS, HTTP, Ed25519; raise ConfigError where the keys are others'.

    `voting_key` and `tls_key` are those in network.toml; the further ones are to which the member rotated since, or
    will.
    """
    own = network.member(config.member)
    if own.voting_key != voting_key.public:
        raise ConfigError("wrong_key", f"the voting key at hand is not the one that network.toml has for {own.id}")

    instance = secrets.token_bytes(INSTANCE_SIZE)

    def open_transport(handler: PeerHandler, contracts_hash: bytes) -> Transport:
        return Peers(
            network=network,
            member=config.member,
            tls_key=tls_key,
            further_tls_keys=further_tls_keys,
            listen=config.listen,
            contracts_hash=contracts_hash,
            instance=instance,
            handler=handler,
            queue_bytes_max=config.limits.peer_queue_bytes_max,
        )

    def open_api(service: NodeService) -> Api:
        host, port = split_address(config.api)
        limits = ApiLimits(
            request_bytes_max=config.limits.api_request_bytes_max, connections_max=config.limits.api_connections_max
        )
        return ApiServer(service, host, port, limits=limits, version=VERSION)

    return Surroundings(
        clock=Clock(),
        threads=WorkerThreads(config.limits.verify_processes),
        open_database=LevelDatabase,
        open_transport=open_transport,
        open_api=open_api,
        sign=voting_key.sign,
        verify=verify,
        instance=instance,
        cut_snapshot=cut_apart,
        further_keys={key.public: key.sign for key in further_keys},
        tls_keys=frozenset(key.public for key in (tls_key, *further_tls_keys)),
    )
