"""Dangerous situations, one class each: what passes, what happens, and what the scene expects.

Four members, the first is the primary of view 0, unless a scene says otherwise. Each is the shortest way that we
know into a state where one rule of consensus/README.md alone stands between the members and a fork or a stall.
"""

from typing import ClassVar

from consensus.messages import (
    Decided,
    LatestVote,
    Message,
    NewView,
    PrePrepare,
    Status,
    ViewChange,
    Vote,
    VoteKind,
)
from tests.simulation.byzantine.behaviour import slot_of
from tests.simulation.byzantine.evasions import Mute
from tests.simulation.byzantine.view_changer import VIEW_MAX
from tests.simulation.disk import Disk
from tests.simulation.machine import Machine
from tests.simulation.network import kind_of
from tests.simulation.stage import Stage


class TwoPrepared(Stage):
    """Block A is prepared in view 0 by m0 alone, block B in view 1 by the others; view 2 must choose B [5.3]."""

    faults_end_ms: ClassVar[int] = 3_500

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """m0 alone gets the prepares of view 0 and nothing of view 1; no commit arrives; view 2 hears m0."""
        slot, kind = slot_of(message), kind_of(message)
        if slot is None or slot[0] != 1 or slot[1] > 2:
            return True
        view = slot[1]
        if kind == "COMMIT" and view < 2:
            return False
        if view == 0:
            return kind != "PREPARE" or receiver.member == 0
        if view == 1:
            return 0 not in (sender.member, receiver.member)
        return not (isinstance(message, ViewChange) and sender.member == 3)


class LeftOut(TwoPrepared):
    """As before, but m3 is gone in view 1: without m0, which holds a certificate of its own, there is no quorum.

    The new view does not know of m0's certificate, so m0 must vote for another block [5.4].
    """

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """The view change of m0 is late, and m3 asks for view 1 and is not heard again."""
        slot, kind = slot_of(message), kind_of(message)
        if slot is None or slot[0] != 1:
            return True
        if slot[1] == 0:
            return kind == "PrePrepare" or (kind in ("PREPARE", "ViewChange") and receiver.member == 0)
        if isinstance(message, ViewChange) and slot[1] == 1:
            return sender.member != 0
        return sender.member != 3 or self.machines[0].disk.height > 0

    def ends(self) -> None:
        """Height 1 is decided in view 1: nobody refused it."""
        chain = self.machines[1].disk.chain
        view = chain[0].certificate.view if chain else None
        self.checks.require(
            "nobody refuses what a new view allows", view == 1, "height 1 was decided in view", view
        )


class DecidedTwice(Stage):
    """Height 1 is decided in view 0 for m0 alone and in view 1 for the others: two certificates of one block.

    m0 has voted at height 2 in view 0; the certificate of view 1 must not take it into that view [5.5, I4].
    """

    faults_end_ms: ClassVar[int] = 3_500

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Commits of view 0 reach m0 alone, and m0 cannot tell what it decided and proposed."""
        if sender.member == 0 and isinstance(message, Decided | Status):
            return False
        slot = slot_of(message)
        if slot is None:
            return True
        if slot == (1, 0) and kind_of(message) == "COMMIT":
            return receiver.member == 0
        return not (sender.member == 0 and slot[0] == 2)

    def ends(self) -> None:
        """The situation came up."""
        views = [machine.conduct.decided_view.get(1) for machine in self.machines]
        self.checks.require(
            "the scene was played", views[0] == 0 and 1 in views, "height 1 decided in views", views
        )


class DecidedBelow(Stage):
    """Height 1 is decided in view 0 for m0 alone; the others learn of it after they have voted in view 1.

    So they must start height 2 in view 1, although the certificate is of view 0 [4.1].
    """

    faults_end_ms: ClassVar[int] = 3_500

    def begins(self) -> None:
        """Nobody has voted in view 1."""
        self._voted: dict[int, None] = {}

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Commits of view 0 reach m0 alone, those of view 1 nobody; m0 tells only whom it finds in view 1."""
        slot, kind = slot_of(message), kind_of(message)
        if slot == (1, 1) and kind in ("PREPARE", "PrePrepare"):
            self._voted[sender.member] = None
        if sender.member == 0 and (isinstance(message, Decided | Status) or (slot is not None and slot[0] > 1)):
            return receiver.member in self._voted
        return slot is None or slot[0] != 1 or kind != "COMMIT" or (slot[1] == 0 and receiver.member == 0)

    def ends(self) -> None:
        """The situation came up."""
        reached = self.checks.reached["voted above the view that decided"]
        self.checks.require("the scene was played", reached > 0)


class TwoVotes(Stage):
    """m0 votes for two blocks in one slot and shows both to everybody: somebody must hold the proof [10.1]."""

    faulty: ClassVar[dict[int, str]] = {0: "censor"}
    faults_end_ms: ClassVar[int] = 2_000

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Each commit vote of m0 is followed by one for another block."""
        if sender.member == 0 and isinstance(message, Vote) and message.kind is VoteKind.COMMIT:
            traitor = self.traitor(0)
            other = traitor.craft.vote(0, message.kind, message.view, message.height, bytes(32))
            if other != message:
                self.after(0, sender, traitor.lie, other, receiver.member)
        # The others' commits are late, so that the height is still open when the second vote comes.
        return not (isinstance(message, Vote) and message.kind is VoteKind.COMMIT and self.now_us < 1_000_000)

    def ends(self) -> None:
        """Somebody accused m0."""
        proved = self.checks.reached["equivocation proved"]
        self.checks.require("two votes in one slot are proved", proved > 0, proved)


class DiskImage(Stage):
    """An image of m3's disk is put back just after it voted, and its primary m0 shows it another block.

    Nothing on the disk tells; the others do: they show m3 its newest vote [9.3, 9.4].
    """

    faulty: ClassVar[dict[int, str]] = {0: "censor"}
    base_timeout_ms: ClassVar[int] = 2_000
    timeout_cap_ms: ClassVar[int] = 4_000
    faults_end_ms: ClassVar[int] = 5_000

    def begins(self) -> None:
        """The image is taken after height 1 and put back after m3's prepare at height 2."""
        self._image: Disk | None = None
        self._put_back = False
        self._rivals: dict[bytes, None] = {}
        self.machines[3].crash_at = ("applied", False, self._take_image)

    def _take_image(self) -> None:
        victim = self.machines[3]
        self._image = victim.disk.copy()
        self.after(1_000, victim, victim._applied)
        victim.crash_at = ("PREPARE", False, self._restore)

    def _restore(self) -> None:
        victim = self.machines[3]
        assert self._image is not None
        victim.crash()
        victim.disk = self._image
        self._put_back = True
        self.after(100_000, None, victim.start)

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """No commit of height 2; after the loss m0 has only the other block for m3."""
        slot = slot_of(message)
        if slot is not None and slot[0] == 2 and kind_of(message) == "COMMIT":
            return False
        if isinstance(message, PrePrepare) and slot == (2, 0) and receiver.member == 3 and self._put_back:
            return self._is_rival(message)
        return True

    def _is_rival(self, message: PrePrepare) -> bool:
        """Whether `message` is the other block; if not, the other block goes out in its place."""
        if message.vote.digest in self._rivals:
            return True
        traitor = self.traitor(0)
        rival = traitor.craft.rival(message)
        self._rivals[rival.vote.digest] = None
        traitor.keep_body(rival.vote.digest, rival.payload)
        self.after(0, traitor, traitor.lie, rival, 3)
        return False

    def ends(self) -> None:
        """The situation came up."""
        self.checks.require("the scene was played", bool(self._rivals), "m3 was shown no other block")


class FarAhead(Stage):
    """m1 proposed at height 3, alone in knowing that height 2 is decided, and lost its disk.

    All others work on height 2, so they know height 1 as the last decided one: H0 + 1 is too little [9.2].
    """

    rotation_heights: ClassVar[int] = 3
    faults_end_ms: ClassVar[int] = 4_000

    def begins(self) -> None:
        """m1 loses its disk as soon as it has proposed at height 3."""
        self._lost = False
        self.machines[1].crash_at = ("applied", False, self._again)

    def _again(self) -> None:
        victim = self.machines[1]
        self.after(1_000, victim, victim._applied)
        at_three = victim.disk.height == 2
        victim.crash_at = ("PrePrepare", False, self._lose) if at_three else ("applied", False, self._again)

    def _lose(self) -> None:
        victim = self.machines[1]
        victim.crash()
        victim.wipe(None)
        self._lost = True
        self.after(100_000, None, victim.start)

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Of height 2 m1 gets the commits alone, and nobody else gets one; of height 3 nobody hears."""
        if sender.member == 1 and isinstance(message, Status) and message.height > 2:
            return False
        if sender.member == 1 and isinstance(message, Decided) and message.certificate.height > 1:
            return False
        slot, kind = slot_of(message), kind_of(message)
        if self._lost and self.machines[1].disk.height == 0:
            return slot is None or slot[0] == 1  # until it has learnt what it must not do
        if slot is not None and slot[0] == 2 and slot[1] == 0:
            if kind == "COMMIT":
                return receiver.member == 1 and not self._lost
            return receiver.member != 1
        return slot is None or slot[0] < 3 or self._lost

    def ends(self) -> None:
        """The situation came up."""
        self.checks.require("the scene was played", self._lost, "m1 never proposed at height 3")


class OneOldFriend(Stage):
    """m3 lost its disk; m2, which sleeps since the beginning, is the first to tell it a height.

    One member's word is too little: a quorum of others must have spoken before m3 may vote [9.2].
    """

    faults_end_ms: ClassVar[int] = 4_000
    request_every_us: ClassVar[int] = 50_000

    def begins(self) -> None:
        """m3 loses its disk after a vote that nobody has heard, at a height far above what m2 knows."""
        self._lost = False
        self._concluded = False
        self.machines[3].crash_at = ("applied", False, self._again)

    def _again(self) -> None:
        victim = self.machines[3]
        self.after(1_000, victim, victim._applied)
        far = victim.disk.height == 6
        victim.crash_at = ("PREPARE", False, self._lose) if far else ("applied", False, self._again)

    def _lose(self) -> None:
        victim = self.machines[3]
        victim.crash()
        victim.wipe(None)
        self._lost = True
        self.after(50_000, None, victim.start)
        self.after(1_000_000, None, self._wake)

    def _wake(self) -> None:
        self._concluded = True

    def linked(self, one: Machine, other: Machine) -> bool:
        """m2 and m3 find each other after the loss; the others join a second later."""
        pair = {one.member, other.member}
        if 2 in pair:
            return self._lost and 3 in pair
        return 3 not in pair or not self._lost or self._concluded

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """As the links; m3's votes at height 7 are lost, and nobody can show m3 what it voted for."""
        if isinstance(message, LatestVote) and receiver.member == 3:
            return False
        slot = slot_of(message)
        if sender.member == 3 and slot is not None and slot[0] > 6:
            return False
        return self.linked(sender, receiver)

    def ends(self) -> None:
        """The situation came up."""
        self.checks.require("the scene was played", self._lost, "m3 never voted at height 7")


class PowerCut(Stage):
    """Everybody prepared block A of m0, nobody got a commit, and the power fails everywhere; m0 stays away.

    The block must lie on the disks of those that voted for it [8.1].
    """

    faults_end_ms: ClassVar[int] = 2_500

    def begins(self) -> None:
        """Three of four have the prepared certificate on disk after 400 ms: that is when the lights go out."""
        self.after(400_000, None, self._cut)

    def _cut(self) -> None:
        prepared = sum(1 in machine.conduct.prepared for machine in self.machines)
        self.checks.require("the scene was played", prepared >= 3, "prepared at", prepared)
        for machine in self.machines:
            machine.crash()
            if machine.member != 0:
                self.after(self.pick(10_000, 50_000), None, machine.start)

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """No commit before the power cut."""
        return kind_of(message) != "COMMIT" or self.now_us > 400_000

    def ends(self) -> None:
        """Three of four have gone on without m0."""
        heights = [machine.disk.height for machine in self.machines]
        self.checks.require("a power cut everywhere stops nobody", max(heights) > 0, "heights", heights)


class OldBlock(Stage):
    """Block A is prepared, and ten seconds pass before a new view can be opened.

    By then its time is further back than the drift allows, and everybody was restarted and executes it anew. Still
    it must be proposed and voted for again [3.3].
    """

    faults_end_ms: ClassVar[int] = 10_000

    def begins(self) -> None:
        """One after the other, all are restarted just before the end."""
        for machine in self.machines:
            self.after(9_000_000 + 100_000 * machine.member, None, machine.crash)
            self.after(9_050_000 + 100_000 * machine.member, None, machine.start)

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Whatever could decide is lost."""
        return not isinstance(message, NewView) and kind_of(message) != "COMMIT"


class LongOutage(Stage):
    """No new view arrives for two minutes, and then the primary of the view asked for is mute [6.4]."""

    faulty: ClassVar[dict[int, str]] = {3: "mute"}
    request_every_us: ClassVar[int] = 2_000_000
    faults_end_ms: ClassVar[int] = 75_000

    def begins(self) -> None:
        """m3 is silent at all heights from its second second on."""
        self.after(1_000_000, None, self._silence)

    def _silence(self) -> None:
        mute = self.traitor(3).behaviour
        assert isinstance(mute, Mute)
        mute.silent_of_four = 4

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Whatever could decide is lost; m3 is never heard."""
        return sender.member != 3 and not isinstance(message, NewView) and kind_of(message) != "COMMIT"


class Asleep(Stage):
    """All members are paused for eight time-outs in the middle of a height, and wake up [6.9].

    Not for longer than a block's time may lie back: the first proposal that is on its way stays good.
    """

    faults_end_ms: ClassVar[int] = 6_000

    def _request(self) -> None:
        """The one request of `begins` is all there is until the end of the scene."""
        if self.healed:
            super()._request()
        else:
            self.after(10_000, None, self._request)

    def begins(self) -> None:
        """A request comes, and everybody falls asleep before it is settled."""
        for machine in self.machines:
            self.after(700_000, None, machine.learn, 0)
        self.after(1_000_000, None, self._sleep)

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """No commit before everybody sleeps."""
        return kind_of(message) != "COMMIT" or self.now_us > 1_000_000

    def _sleep(self) -> None:
        heights = [machine.disk.height for machine in self.machines]
        self.checks.require("the scene was played", heights == [0] * 4, "heights", heights)
        for machine in self.machines:
            machine.paused = True
        self.after(4_000_000, None, self._wake)

    def _wake(self) -> None:
        for machine in self.machines:
            machine.paused = False
            backlog, machine.backlog = machine.backlog, []
            self.after(0, machine, machine._late_tick)
            for action, arguments in backlog:
                self.after(1_000, machine, action, *arguments)

    def ends(self) -> None:
        """Nobody took its own sleep for the primary's."""
        asked = sum(len(machine.conduct.view_changes) for machine in self.machines)
        self.checks.require("who was paused accuses nobody", asked == 0, asked, "view changes")


class Censored(Stage):
    """The primary leaves one request out of all its blocks, while others are settled [6.7]."""

    faulty: ClassVar[dict[int, str]] = {0: "censor"}
    request_every_us: ClassVar[int] = 20_000
    faults_end_ms: ClassVar[int] = 6_000

    def begins(self) -> None:
        """After half a second everybody learns of the request that m0 does not like."""
        self._victim = self.issue()
        censor = self.traitor(0).behaviour
        setattr(censor, "leaves_out", lambda requests: tuple(r for r in requests if r == self._victim))  # noqa: B010
        for machine in self.machines:
            self.after(500_000, None, machine.learn, self._victim)

    def ends(self) -> None:
        """It is settled."""
        settled = self._victim in self.machines[1].disk.applied_requests
        height = self.machines[1].disk.height
        self.checks.require("no request waits for ever", settled, self._victim, "waits at height", height)


class Sluggish(Stage):
    """Under full load the primary becomes slow, and stays below every time-out [6.8]."""

    faulty: ClassVar[dict[int, str]] = {0: "censor"}
    request_every_us: ClassVar[int] = 7_000
    faults_end_ms: ClassVar[int] = 10_000

    def begins(self) -> None:
        """Well for a few windows, then late with everything it says."""
        behaviour = self.traitor(0).behaviour
        setattr(behaviour, "leaves_out", lambda requests: ())  # noqa: B010  # it censors nothing, it is only slow
        setattr(behaviour, "delay_us", lambda: 150_000 if self.now_us > 4_000_000 else 0)  # noqa: B010

    def ends(self) -> None:
        """Another member is the primary now."""
        primaries = [machine.replica.status().primary for machine in self.machines[1:]]
        slow = self.traitor(0).id
        self.checks.require("a slow primary is replaced", slow not in primaries, *primaries)


class AbsurdView(Stage):
    """m3 asks all the time for the last view of all, after which there is none; nobody follows one liar [6.6]."""

    faulty: ClassVar[dict[int, str]] = {3: "censor"}
    faults_end_ms: ClassVar[int] = 2_000

    def begins(self) -> None:
        """From the first height on."""
        traitor = self.traitor(3)
        decided = traitor.disk.chain[-1].certificate if traitor.disk.chain else None
        wish = ViewChange(traitor.disk.height + 1, VIEW_MAX - 1, decided, None, 3, b"")
        for receiver in traitor.others():
            traitor.lie(traitor.craft.signed(wish), receiver)
        if not self.healed:
            self.after(100_000, None, self.begins)
