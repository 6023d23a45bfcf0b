"""The file in which survivors of a lost quorum agree on how their network goes on (docs/recovery.md).

Invariant: what is signed is the recovery block's digest, and everything else in the file is either covered by it or
refused where it contradicts it. A survivor's signature is its commit vote for that block, in a view in which no
member has ever been: so all of them together are the block's certificate, and none of them can be taken for a vote
of the members before, or the other way round.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from consensus.codec import CodecError, decode, encode
from consensus.epochs import EPOCH_VIEWS
from consensus.members import Members, Validator
from consensus.messages import VALIDATORS_MAX, Certificate, VoteKind, vote_bytes
from consensus.verification import Verifier
from node.config import BLOCK_BYTES_LIMIT, PROPOSER, Recovery
from node.errors import ConfigError
from node.ledger import CertifiedBlock, Header, content_root, members_hash, sha256
from node.signatures import verify

FILE_SIZE_MAX: Final = 2 * BLOCK_BYTES_LIMIT + 4 * 1024 * 1024
"""A kept block in hex, and the lists."""

_Hex: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})*\Z")]
_Hex32: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Hex64: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]
_Id: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
_Network: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,47}-[0-9a-f]{12}\Z")]
"""People read it: a file of nobody's network must not write over their screen."""
_Reason: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{1,400}\Z")]
_Height: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One JSON object; a field that nobody knows is refused."""


class _Member(_Strict, frozen=True):
    id: _Id
    voting_key: _Hex32


_Members: TypeAlias = Annotated[tuple[_Member, ...], msgspec.Meta(min_length=1, max_length=VALIDATORS_MAX)]


class _Signature(_Strict, frozen=True):
    member: _Id
    recovery: _Hex64
    kept: _Hex64 | None = None


class _File(_Strict, frozen=True):
    hansa_recovery: Literal[1]
    number: _Hex32
    summary: tuple[str, ...]
    network: _Network
    genesis_hash: _Hex32
    base_height: _Height
    base_digest: _Hex32
    view: Annotated[int, msgspec.Meta(ge=EPOCH_VIEWS, lt=2**53)]
    former: _Members
    survivors: _Members
    without_memory: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=VALIDATORS_MAX)]
    reason: _Reason
    time_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**47)]
    header: _Hex
    kept: _Hex
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(max_length=VALIDATORS_MAX)]


class Countersignature(msgspec.Struct, frozen=True):
    """A survivor's commit votes: for the recovery block, and for the kept block where there is one."""

    member: str
    recovery: bytes
    kept: bytes | None


class RecoveryFile(msgspec.Struct, frozen=True, kw_only=True):
    """A recovery on its way to its signatures; those that it has verify.

    `former` decide the height above the base block, and too few of them are left; `survivors` (with the voting keys
    that the state after the block names) go on. `kept` is the block above the base that the former had prepared,
    with that proof. `without_memory` are survivors that do not know what they had signed before.
    """

    network: str
    genesis_hash: bytes
    base_height: int
    base_digest: bytes
    view: int
    former: tuple[Validator, ...]
    survivors: tuple[Validator, ...]
    without_memory: tuple[str, ...]
    reason: str
    time_ms: int
    header: Header
    kept: CertifiedBlock | None
    signatures: tuple[Countersignature, ...] = ()

    @property
    def digest(self) -> bytes:
        """The recovery block's digest, which people compare: it stands for the whole file."""
        return self.header.digest

    @property
    def kept_digest(self) -> bytes:
        """The digest of the kept block; empty where none is kept."""
        return b"" if self.kept is None else self.kept.body.header.digest

    @property
    def recovery(self) -> Recovery:
        """What nodes and verifiers have to know of it."""
        statement = statement_hash(
            self.network,
            self.genesis_hash,
            self.base_height,
            self.base_digest,
            self.kept_digest,
            self.view,
            self.former,
            self.survivors,
            self.without_memory,
            self.reason,
            self.time_ms,
        )
        return Recovery(self.header.height, self.digest, self.kept_digest, self.survivors, self.reason, statement)

    @property
    def missing(self) -> tuple[str, ...]:
        """The survivors that have not signed."""
        signed = [item.member for item in self.signatures]
        return tuple([survivor.id for survivor in self.survivors if survivor.id not in signed])

    @property
    def left_out(self) -> tuple[str, ...]:
        """The former validators that do not go on."""
        staying = [survivor.id for survivor in self.survivors]
        return tuple([item.id for item in self.former if item.id not in staying])

    @property
    def may_lose_blocks(self) -> bool:
        """Whether those that do not go on with their memory are a quorum of the former members.

        What they have decided above the base block no survivor may know.
        """
        former = Members(self.former)
        return former.n - (len(self.survivors) - len(self.without_memory)) >= former.quorum

    def kept_message(self) -> bytes | None:
        """What a survivor signs for the kept block."""
        if self.kept is None:
            return None
        return vote_bytes(self.network, VoteKind.COMMIT, self.view, self.header.height - 1, self.kept_digest)

    def message(self) -> bytes:
        """What a survivor signs for the recovery block."""
        return vote_bytes(self.network, VoteKind.COMMIT, self.view, self.header.height, self.digest)

    def certificate(self, *, kept: bool = False) -> Certificate:
        """The certificate of the recovery block, or of the kept one; of a complete file."""
        by_member = {item.member: item.kept if kept else item.recovery for item in self.signatures}
        signatures = tuple([(place, by_member[item.id] or b"") for place, item in enumerate(self.survivors)])
        height, digest = self.header.height - int(kept), self.kept_digest if kept else self.digest
        return Certificate(VoteKind.COMMIT, self.view, height, digest, signatures)

    def with_signature(self, signature: Countersignature) -> "RecoveryFile":
        """The same with one signature more, or as it is where that is there already.

        Raise ConfigError("recovery_file_altered") for what is no signature of a survivor.
        """
        if any(item.member == signature.member for item in self.signatures):
            return self
        _check_signature(self, signature)
        return msgspec.structs.replace(self, signatures=(*self.signatures, signature))

    def unsigned(self) -> "RecoveryFile":
        """The same without signatures: what all survivors have to have alike."""
        return msgspec.structs.replace(self, signatures=())

    def summary(self) -> tuple[str, ...]:
        """What is signed, in words."""
        members = Members(self.survivors)
        staying = ", ".join(item.id for item in self.survivors)
        when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=self.time_ms)
        lines = [
            f"{self.network} goes on after block {self.base_height} {self.base_digest.hex()}",
            f"members that go on: {staying} ({members.quorum} of {members.n} decide from then on)",
            f"members that are suspended: {', '.join(self.left_out)}",
            f"reason: {self.reason}",
            f"block time: {when.isoformat(' ', 'seconds')}",
        ]
        if self.kept is not None:
            count = len(self.kept.body.transactions)
            lines.insert(1, f"with block {self.base_height + 1} {self.kept_digest.hex()}, prepared ({count} in it)")
        if self.without_memory:
            lines.append(f"without memory of what they had signed: {', '.join(self.without_memory)}")
        lines.append(f"recovery block {self.header.height}, number {self.digest.hex()}")
        return tuple(lines)

    def encode(self) -> bytes:
        """The file's bytes."""
        file = _File(
            1,
            self.digest.hex(),
            self.summary(),
            self.network,
            self.genesis_hash.hex(),
            self.base_height,
            self.base_digest.hex(),
            self.view,
            _rows(self.former),
            _rows(self.survivors),
            self.without_memory,
            self.reason,
            self.time_ms,
            encode(self.header).hex(),
            "" if self.kept is None else encode(self.kept).hex(),
            tuple(
                [
                    _Signature(item.member, item.recovery.hex(), None if item.kept is None else item.kept.hex())
                    for item in self.signatures
                ]
            ),
        )
        return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> "RecoveryFile":
        """Return the recovery in a file's bytes.

        Raise ConfigError: `recovery_file_invalid` for what is no such file, `recovery_file_altered` for one whose
        parts contradict one another.
        """
        if len(data) > FILE_SIZE_MAX:
            raise ConfigError("recovery_file_invalid", f"it has more than {FILE_SIZE_MAX:,} bytes")
        try:
            file = msgspec.json.decode(data, type=_File, strict=True)
            # Of a field that stands twice, people read the first one and programs take the last.
            json.loads(data, object_pairs_hook=_fields)
            kept = bytes.fromhex(file.kept)
            found = cls(
                network=file.network,
                genesis_hash=bytes.fromhex(file.genesis_hash),
                base_height=file.base_height,
                base_digest=bytes.fromhex(file.base_digest),
                view=file.view,
                former=_validators(file.former),
                survivors=_validators(file.survivors),
                without_memory=file.without_memory,
                reason=file.reason,
                time_ms=file.time_ms,
                header=decode(bytes.fromhex(file.header), Header, size_max=4096),
                kept=decode(kept, CertifiedBlock, size_max=FILE_SIZE_MAX) if kept else None,
            )
        except (msgspec.DecodeError, CodecError, ValueError, RecursionError) as error:
            raise ConfigError("recovery_file_invalid", f"it is no recovery file: {error}") from error
        _check(found)
        if (found.digest.hex(), found.summary()) != (file.number, file.summary):
            raise _altered("its number or its summary is not that of what was signed")
        for item in file.signatures:
            if any(known.member == item.member for known in found.signatures):
                raise _altered(f"{item.member} stands twice among its signatures")
            kept_signature = None if item.kept is None else bytes.fromhex(item.kept)
            found = found.with_signature(
                Countersignature(item.member, bytes.fromhex(item.recovery), kept_signature)
            )
        return found


def statement_hash(
    network: str,
    genesis_hash: bytes,
    base_height: int,
    base_digest: bytes,
    kept_digest: bytes,
    view: int,
    former: tuple[Validator, ...],
    survivors: tuple[Validator, ...],
    without_memory: tuple[str, ...],
    reason: str,
    time_ms: int,
) -> bytes:
    """The hash that the recovery block's event carries: of all that the survivors say."""
    said = (base_height, base_digest, kept_digest, view, former, survivors, without_memory, reason, time_ms)
    return sha256(encode(("hansa/recovery", 1, network, genesis_hash, *said)))


def _check(found: RecoveryFile) -> None:
    """The parts of the file fit together; raise ConfigError("recovery_file_altered") otherwise."""
    header, kept = found.header, found.kept
    try:
        former, survivors = Members(found.former), Members(found.survivors)
    except ValueError as error:
        raise _altered(str(error)) from error
    parent = found.base_digest
    if kept is not None:
        above, parent, proof = kept.body.header, found.kept_digest, kept.certificate
        fits = (above.network, above.height, above.parent) == (
            found.network,
            found.base_height + 1,
            found.base_digest,
        )
        if not fits or above.tx_root != content_root(kept.body.transactions, kept.body.quarantined):
            raise _altered("the kept block does not follow the base block, or has other content")
        named = (proof.height, proof.digest) == (above.height, found.kept_digest)
        if not named or not Verifier(found.network, verify).certificate(proof, VoteKind.PREPARE, former):
            raise _altered("the kept block was not prepared by a quorum of the former members")
    height = found.base_height + 1 + int(kept is not None)
    said = (found.network, height, parent, found.time_ms, PROPOSER)
    if (header.network, header.height, header.parent, header.time_ms, header.proposer) != said:
        raise _altered("its header is not that of the recovery block of what it says")
    if header.members_hash != members_hash(survivors):
        raise _altered("its header names other survivors")
    if found.view % EPOCH_VIEWS:
        raise _altered("its view is none that a recovery begins with")
    if any(survivors.index(item) is None for item in found.without_memory):
        raise _altered("somebody who is no survivor is said to be without memory")


def _check_signature(found: RecoveryFile, signature: Countersignature) -> None:
    place = Members(found.survivors).index(signature.member)
    if place is None:
        raise _altered(f"{signature.member} is none of its survivors")
    key, kept = found.survivors[place].voting_key, found.kept_message()
    right = verify(key, found.message(), signature.recovery)
    if kept is None:
        right = right and signature.kept is None
    else:
        right = right and signature.kept is not None and verify(key, kept, signature.kept)
    if not right:
        raise _altered(f"the signature of {signature.member} is none of its voting key")


def _rows(validators: tuple[Validator, ...]) -> tuple[_Member, ...]:
    return tuple([_Member(item.id, item.voting_key.hex()) for item in validators])


def _validators(rows: tuple[_Member, ...]) -> tuple[Validator, ...]:
    return tuple([Validator(row.id, bytes.fromhex(row.voting_key)) for row in rows])


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice")
    return found


def _altered(why: str) -> ConfigError:
    return ConfigError("recovery_file_altered", why)
