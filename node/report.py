"""What a member signs about itself for the other members' operators: its report, as bytes; pure.

A report serves people alone: nothing in consensus, storage or admission reads one, so a lie in it costs the truth
of a sentence and never a block. It travels as opaque bytes: one that a newer node wrote with more in it is left
aside and ends no connection.
"""

from typing import Annotated, Final, TypeAlias

import msgspec

from consensus.codec import CodecError, decode, encode
from consensus.messages import VALIDATORS_MAX, Height, TimeMs, View
from node.ledger import Hash, NetworkId

REPORT_SIZE_MAX: Final = 16 * 1024
"""Bytes of an encoded report."""
LINKS_MAX: Final = 2 * VALIDATORS_MAX
CONDITIONS_MAX: Final = 8
TEXT_LENGTH_MAX: Final = 160
DETAIL_LENGTH_MAX: Final = 480
_TAG: Final = "hansa/report"

Id: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Code: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{0,40}\Z")]
Text: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{0,160}\Z")]
Detail: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{0,480}\Z")]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
OffsetMs: TypeAlias = Annotated[int, msgspec.Meta(gt=-(2**53), lt=2**53)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array."""


class LinkReport(_Part, frozen=True):
    """How the reporter reaches `member`: how long ago it heard from it (None: never), why the last link ended.

    `clock_offset_ms` is the member's clock minus the reporter's (None: not measured).
    """

    member: Id
    connected: bool
    silence_ms: Count | None
    error: Text
    clock_offset_ms: OffsetMs | None


class Condition(_Part, frozen=True):
    """A fact about the reporter that explains what it does not do: a code of the table of causes, and details."""

    code: Code
    detail: Detail


class Report(_Part, frozen=True):
    """One member's word about itself. `sequence` grows with every report of it.

    `height` is the one in work, `asked` the view it asks for there, `phase` what it waits for (consensus.status),
    `waits_for` whose message. `step_ms` is for how long it has been in this phase, `idle_ms` how long ago its last
    block was applied. `abstention` says why it signs nothing ("": it signs) and `abstain_until` up to which height.
    `waiting` transactions wait in it.
    """

    network: NetworkId
    member: Id
    sequence: Count
    time_ms: TimeMs
    version: Text
    contracts_hash: Hash
    height: Height
    view: View
    asked: View | None
    phase: Code
    waits_for: Annotated[tuple[Id, ...], msgspec.Meta(max_length=LINKS_MAX)]
    step_ms: Count
    idle_ms: Count
    abstention: Code
    abstain_until: Height
    waiting: Count
    disk_free_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None
    links: Annotated[tuple[LinkReport, ...], msgspec.Meta(max_length=LINKS_MAX)]
    conditions: Annotated[tuple[Condition, ...], msgspec.Meta(max_length=CONDITIONS_MAX)]


class _Signed(_Part, frozen=True):
    tag: str
    report: bytes


def encode_report(report: Report) -> bytes:
    """Return the report's canonical bytes; of one that would be too long the links' errors are left out."""
    data = encode(report)
    if len(data) > REPORT_SIZE_MAX:
        bare = tuple(msgspec.structs.replace(link, error="") for link in report.links)
        data = encode(msgspec.structs.replace(report, links=bare))
    return data


def decode_report(data: bytes) -> Report | None:
    """Return the report in `data`; None when this version cannot read it."""
    try:
        return decode(data, Report, size_max=REPORT_SIZE_MAX)
    except CodecError:
        return None


def report_bytes(data: bytes) -> bytes:
    """The bytes that are signed for the encoded report `data`, which names network and member itself."""
    return encode(_Signed(_TAG, data))


def printable(text: str, length_max: int = TEXT_LENGTH_MAX) -> str:
    """Return `text` as a report may hold it: one line of printable ASCII, cut to its length."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:length_max]
