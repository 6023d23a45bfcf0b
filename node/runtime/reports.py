"""Members' signed reports: this node's is told to the others, theirs are judged and kept, one of each.

Everything here serves `why` alone and never consensus. A report is believed because its member signed it, so any
member may pass it on: that is how a member is known whose link to this node is cut.
"""

from collections.abc import Callable, Sequence

from node.config import MemberConfig, NetworkConfig
from node.diagnosis import Heard
from node.peers import Transport
from node.report import Report, decode_report, encode_report, report_bytes
from node.runtime.clock import Clock
from node.wire import MemberReport

RELAY_MS_MAX = 2_500
"""An older report is not passed on; whoever gets one by a third member takes it for so old."""
RELAY_APART_MS_MAX = 60_000
"""What is passed on was said within seconds. One whose own time is further from this node's clock may be an old
report of a member that is away, sent again by a liar: what was wrong with it then is no culprit now."""
REPORTS_PER_SECOND_MAX = 8
"""Reports taken from one peer in a second, besides one of every member: what comes above that is not looked at."""


class Reports:
    """The newest report of every other member. Runs on the event loop."""

    def __init__(
        self,
        network: NetworkConfig,
        member: str,
        signer: Callable[[bytes], Callable[[bytes], bytes] | None],
        verify: Callable[[bytes, bytes, bytes], bool],
        transport: Transport,
        clock: Clock,
    ) -> None:
        """`signer` gives what signs with one of this member's keys; None: that one is not at hand."""
        self._network_id = network.network_id
        self._keys = {item.id: item.voting_key for item in network.members}
        self._member = member
        self._signer = signer
        self._verify = verify
        self._transport = transport
        self._clock = clock
        self._newest: dict[str, tuple[Report, MemberReport, int]] = {}
        self._direct_ms: dict[str, int] = {}
        self._taken: dict[str, tuple[int, int]] = {}

    def set_members(self, members: Sequence[MemberConfig]) -> None:
        """Reports of these members count from now on, under the voting keys that they have now."""
        self._keys = {item.id: item.voting_key for item in members}
        self._newest = {name: kept for name, kept in self._newest.items() if name in self._keys}
        self._direct_ms = {name: ms for name, ms in self._direct_ms.items() if name in self._keys}

    def heard(self) -> dict[str, Heard]:
        """The newest report of every member that was heard of, with its age."""
        now_ms = self._clock.now_ms()
        return {
            name: Heard(report, max(0, now_ms - heard_ms)) for name, (report, _, heard_ms) in self._newest.items()
        }

    def direct_ages(self) -> dict[str, int]:
        """How long ago each member last sent a report of its own over its own link."""
        now_ms = self._clock.now_ms()
        return {name: now_ms - heard_ms for name, heard_ms in self._direct_ms.items()}

    def publish(self, report: Report) -> None:
        """This node's `report` is on its way to every peer, and others' reports to those who cannot hear them."""
        # By the ledger's key, whoever decides blocks: a member that is suspended, or an observer, has one too.
        sign = self._signer(self._keys[self._member]) if self._member in self._keys else None
        if sign is not None:
            data = encode_report(report)
            self._transport.broadcast(MemberReport(self._member, data, sign(report_bytes(data))))
        now_ms = self._clock.now_ms()
        for peer in self._transport.connected:
            known = self._newest.get(peer)
            if known is None:
                continue
            reached = {link.member for link in known[0].links if link.connected}
            for name, (_, message, heard_ms) in self._newest.items():
                if name != peer and name not in reached and now_ms - heard_ms <= RELAY_MS_MAX:
                    self._transport.send(peer, message)

    def receive(self, peer: str, message: MemberReport) -> None:
        """Keep the report when it is its member's, newer than the one at hand, and `peer` does not flood."""
        key = self._keys.get(message.member)
        if message.member == self._member or key is None or self._floods(peer):
            return
        known = self._newest.get(message.member)
        if known is not None and known[1] == message:
            return
        report = decode_report(message.report)
        if report is None:
            # A newer release may say more than this one can read.
            return
        # A link is in order, so its own member's word is the newest, whatever its clock did between two starts.
        direct = peer == message.member
        if known is not None and not direct and report.sequence <= known[0].sequence:
            return
        if not direct and abs(self._clock.time_ms() - report.time_ms) > RELAY_APART_MS_MAX:
            return
        if (report.network, report.member) != (self._network_id, message.member):
            return
        if not self._verify(key, report_bytes(message.report), message.signature):
            return
        now_ms = self._clock.now_ms()
        if direct:
            self._direct_ms[peer] = now_ms
        self._newest[message.member] = (report, message, now_ms if direct else now_ms - RELAY_MS_MAX)

    def _floods(self, peer: str) -> bool:
        """Whether the peer has sent more than its share within this second."""
        second = self._clock.now_ms() // 1000
        known, count = self._taken.get(peer, (second, 0))
        count = count + 1 if known == second else 1
        self._taken[peer] = (second, count)
        return count > REPORTS_PER_SECOND_MAX + len(self._keys)
