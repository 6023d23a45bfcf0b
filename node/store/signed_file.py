"""`recoveries/signed`: the recoveries that this member has signed, once more beside its database.

Why: a damaged `data/` is deleted, or repaired without what cannot be read of it, and that must set nobody free from
what it has signed (docs/recovery.md). So before a signature exists its promise is durable in both places, in the
database first: what stands in this file and not there, the database has lost, or it is an older copy.

Format: SHA-256 of the rest, 32 bytes; then the canonical bytes of (network, genesis hash, promises, the one that
holds last).
"""

import errno
from pathlib import Path
from typing import Final

import msgspec

from consensus.codec import CodecError, decode, encode
from node.errors import ConfigError, StoreError
from node.ledger import sha256
from node.store import promises
from node.store.database import Database
from node.store.durable import replace_durably
from node.store.forgetting import forget_votes
from node.store.layout import RecoveryPromise

SIZE_MAX: Final = 1024 * 1024
"""Far more than a member ever signs: each takes about 60 bytes."""


class _Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    network: str
    genesis_hash: bytes
    promises: tuple[RecoveryPromise, ...]


class SignedFile:
    """The file beside one data directory."""

    def __init__(self, path: Path, network: str, genesis_hash: bytes) -> None:
        """Nothing is read yet."""
        self.path = path
        self._network = network
        self._genesis_hash = genesis_hash

    def read(self) -> tuple[RecoveryPromise, ...]:
        """Return what it holds; nothing where there is no file.

        Raise StoreError where it cannot be read or is damaged (`recovery_promise_unreadable`), ConfigError where it
        is another network's.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(SIZE_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise StoreError("disk_failed", f"{self.path}: {error.strerror or error}") from error
        try:
            if sha256(data[32:]) != data[:32]:
                raise CodecError("its checksum is wrong")
            found = decode(data[32:], _Signed, size_max=SIZE_MAX)
        except CodecError as error:
            raise StoreError("recovery_promise_unreadable", f"{self.path}: {error}") from error
        if (found.network, found.genesis_hash) != (self._network, self._genesis_hash):
            raise ConfigError("data_of_another_network", f"{self.path} belongs to the network {found.network}")
        return found.promises

    def write(self, signed: tuple[RecoveryPromise, ...]) -> None:
        """It holds these, durably; raise StoreError, and it holds what it held before."""
        plain = tuple([msgspec.structs.replace(item, passed=False) for item in signed])
        body = encode(_Signed(self._network, self._genesis_hash, plain))
        try:
            replace_durably(self.path, sha256(body) + body)
        except OSError as error:
            code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
            raise StoreError(code, f"{self.path}: {error.strerror or error}") from error


def settle(database: Database, signed: SignedFile) -> None:
    """What the member has signed stands in both places; a database that has lost some of it forgets its votes.

    These go first: a crash between the two writes is gone over again. Raise StoreError where the file is damaged
    and the database holds nothing.
    """
    known = promises.read_promises(database)
    try:
        beside = signed.read()
    except StoreError as error:
        if error.code != "recovery_promise_unreadable" or not known:
            raise
        # One whole place is enough, and the database's is the one that is written first.
        beside = ()
    if promises.lost(known, beside):
        forget_votes(database)
        database.write(promises.restored(known, beside))
        known = promises.read_promises(database)
    if [item.digest for item in known] != [item.digest for item in beside]:
        signed.write(known)
