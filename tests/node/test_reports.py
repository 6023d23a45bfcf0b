"""Members' signed reports: kept one a member, believed for their signature alone, and never a burden."""

from typing import Any

import msgspec
import pytest

from node.config import MemberConfig, NetworkConfig
from node.keys import SigningKey
from node.report import (
    REPORT_SIZE_MAX,
    Condition,
    LinkReport,
    Report,
    decode_report,
    encode_report,
    printable,
    report_bytes,
)
from node.runtime.clock import Clock
from node.runtime.clock_offsets import ClockOffsets
from node.runtime.reports import RELAY_APART_MS_MAX, RELAY_MS_MAX, REPORTS_PER_SECOND_MAX, Reports
from node.signatures import verify
from node.wire import (
    LENGTH_SIZE,
    MemberReport,
    TrafficClass,
    WireMessage,
    decode_message,
    encode_frame,
    traffic_class,
)
from tests.node.diagnosis_world import report

KEYS = {name: SigningKey(bytes([place]) * 32) for place, name in enumerate(("member-0", "member-1", "member-2"), 1)}
NEXT = SigningKey(bytes([9]) * 32)
NETWORK = NetworkConfig(
    name="net",
    members=tuple(MemberConfig(name, "validator", "h:1", key.public, key.public) for name, key in KEYS.items()),
)


class SetClock(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.ms = 10_000

    def now_ms(self) -> int:
        return self.ms

    def time_ms(self) -> int:
        return self.ms


class Links:
    """Remembers what was sent; `connected` is what a test says."""

    def __init__(self) -> None:
        self.connected: tuple[str, ...] = ()
        self.told: list[WireMessage] = []
        self.sent: list[tuple[str, WireMessage]] = []

    def broadcast(self, message: WireMessage) -> None:
        self.told.append(message)

    def send(self, peer: str, message: WireMessage) -> bool:
        self.sent.append((peer, message))
        return True


class Desk:
    """member-0's reports, with the clock and the links that a test moves."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.links = Links()
        self.verified = 0
        links: Any = self.links
        self.at_hand = {key.public: key.sign for key in (KEYS["member-0"], NEXT)}
        self.reports = Reports(NETWORK, "member-0", self.at_hand.get, self._verify, links, self.clock)

    def _verify(self, key: bytes, data: bytes, signature: bytes) -> bool:
        self.verified += 1
        return verify(key, data, signature)

    def heights(self) -> dict[str, int]:
        return {name: heard.report.height for name, heard in self.reports.heard().items()}


def signed(member: str, signer: str | None = None, **changes: Any) -> MemberReport:
    content = report(member, **{"network": NETWORK.network_id, **changes})
    data = encode_report(content)
    return MemberReport(member, data, KEYS[signer or member].sign(report_bytes(data)))


def test_a_report_travels_as_bytes_in_the_lowest_class() -> None:
    message = signed("member-1")
    assert decode_message(encode_frame(message)[LENGTH_SIZE:]) == message
    assert traffic_class(message) is TrafficClass.BULK
    assert decode_report(message.report) == report("member-1", network=NETWORK.network_id)


def test_a_report_is_signed_by_the_key_that_the_ledger_has_for_the_member() -> None:
    """A member that changed its key and was suspended signed with its first one: nobody heard it any more."""
    desk = Desk()
    content = report("member-0", network=NETWORK.network_id)

    def signers() -> list[SigningKey]:
        told = [item for item in desk.links.told if isinstance(item, MemberReport)]
        desk.links.told.clear()
        return [
            key
            for item in told
            for key in (KEYS["member-0"], NEXT)
            if verify(key.public, report_bytes(item.report), item.signature)
        ]

    desk.reports.publish(content)
    assert signers() == [KEYS["member-0"]]
    desk.reports.set_members([msgspec.structs.replace(NETWORK.members[0], voting_key=NEXT.public)])
    desk.reports.publish(content)
    assert signers() == [NEXT]
    # Without the key nothing that anybody could believe can be said.
    del desk.at_hand[NEXT.public]
    desk.reports.publish(content)
    assert signers() == []


def test_a_members_report_is_kept_with_its_age() -> None:
    desk = Desk()
    desk.reports.receive("member-1", signed("member-1", height=7))
    desk.clock.ms += 1_500
    heard = desk.reports.heard()["member-1"]
    assert (heard.report.height, heard.age_ms, heard.fresh) == (7, 1_500, True)
    desk.clock.ms += 10_000
    assert not desk.reports.heard()["member-1"].fresh


@pytest.mark.parametrize(
    "message",
    [
        signed("member-1", signer="member-2"),
        signed("member-1", network="other-000000000000"),
        msgspec.structs.replace(signed("member-2"), member="member-1"),
        msgspec.structs.replace(signed("member-1"), member="stranger"),
        msgspec.structs.replace(signed("member-1"), report=b"\x90"),
        msgspec.structs.replace(signed("member-1"), signature=bytes(64)),
        signed("member-0"),
    ],
    ids=["forged", "other network", "another's", "a stranger's", "unreadable", "unsigned", "our own"],
)
def test_what_is_not_its_members_word_is_left_aside(message: MemberReport) -> None:
    desk = Desk()
    desk.reports.receive("member-1", message)
    assert desk.heights() == {}


def test_a_report_passed_on_counts_as_older_and_never_displaces_a_newer_one() -> None:
    desk = Desk()
    desk.reports.receive("member-2", signed("member-1", sequence=5, height=5))
    assert desk.reports.heard()["member-1"].age_ms == RELAY_MS_MAX
    assert desk.reports.direct_ages() == {}
    desk.reports.receive("member-2", signed("member-1", sequence=4, height=4))
    assert desk.heights() == {"member-1": 5}
    # On its own link a member may begin anew: its clock may have been set back before it started again.
    desk.reports.receive("member-1", signed("member-1", sequence=1, height=6))
    assert desk.heights() == {"member-1": 6}
    assert desk.reports.direct_ages() == {"member-1": 0}


def test_an_old_report_that_is_sent_again_accuses_nobody() -> None:
    desk = Desk()
    desk.clock.ms = RELAY_APART_MS_MAX + 100_000
    old = signed("member-1", sequence=5, time_ms=99_999, conditions=(Condition("diverged", "height 4"),))
    desk.reports.receive("member-2", old)
    assert desk.heights() == {}
    desk.reports.receive("member-2", signed("member-1", sequence=6, time_ms=100_000))
    assert desk.heights() == {"member-1": 1}
    # Over its own link a member is believed whatever its clock says.
    desk.reports.receive("member-1", old)
    assert [item.code for item in desk.reports.heard()["member-1"].report.conditions] == ["diverged"]


def test_a_flood_is_not_even_verified() -> None:
    desk = Desk()
    for sequence in range(1_000):
        desk.reports.receive("member-1", signed("member-1", sequence=sequence) if sequence < 20 else FLOOD)
    assert desk.verified <= REPORTS_PER_SECOND_MAX + len(KEYS)
    desk.clock.ms += 1_000
    desk.reports.receive("member-1", signed("member-1", sequence=2_000, height=9))
    assert desk.heights() == {"member-1": 9}


FLOOD = signed("member-1", sequence=999)


def test_others_reports_are_passed_on_to_whoever_cannot_hear_them() -> None:
    desk = Desk()
    desk.links.connected = ("member-1", "member-2")
    cut = LinkReport("member-2", False, None, "", None)
    desk.reports.receive("member-1", signed("member-1", links=(cut,)))
    second = signed("member-2")
    desk.reports.receive("member-2", second)
    desk.reports.publish(report("member-0", network=NETWORK.network_id))
    assert desk.links.sent == [("member-1", second)], "member-2 hears member-1 itself"
    [own] = desk.links.told
    assert isinstance(own, MemberReport)
    assert verify(KEYS["member-0"].public, report_bytes(own.report), own.signature)
    desk.links.sent.clear()
    desk.clock.ms += RELAY_MS_MAX + 1
    desk.reports.publish(report("member-0", network=NETWORK.network_id))
    assert desk.links.sent == [], "what is old is not passed on"


def test_a_report_of_the_largest_network_fits() -> None:
    names = [f"{'a' * 28}-{number:03d}" for number in range(250)]
    links = tuple(LinkReport(name, True, 10**6, printable("unreachable: " + "x" * 500), -(10**9)) for name in names)
    data = encode_report(report("member-1", links=links, waits_for=()))
    assert len(data) <= REPORT_SIZE_MAX
    assert decode_report(data) is not None


def test_a_text_that_could_paint_a_terminal_is_no_report() -> None:
    data = msgspec.msgpack.encode(report("member-1", version="0.1\x1b[2J"))
    assert decode_report(data) is None
    assert printable("0.1\x1b[2Jé") == "0.1?[2J?"


def test_a_clock_is_the_middle_of_its_samples() -> None:
    offsets = ClockOffsets()
    for their_time_ms in (1_000, 1_010, 9_000_000):
        offsets.note("member-1", their_time_ms, 1_000, round_trip_ms=20)
    assert offsets.medians() == {"member-1": 20}
    offsets.forget("member-1")
    assert offsets.medians() == {}


def test_reports_are_canonical() -> None:
    content: Report = report("member-1")
    assert decode_report(encode_report(content) + b"\x00") is None
