"""One recovery on a running test network: a member's disk is lost and it comes back, timed step by step.

Times start with the loss. `voting_s` is the recovery time (RTO): until the member votes again, on a ledger that
agrees with the others'. What is lost (RPO) is counted in blocks and transactions: with its peers, none; and what
the backup alone would have given back, had all members been lost at that moment.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from node.backup import Restore
from node.client import Client, NodeStatus
from node.errors import HansaError
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes, node_status

POLL_S = 0.05
DIRECTORIES = ("data", "snapshots", "joining", "backup-snapshot")
"""What a lost disk takes with it. Keys and configuration are kept apart, as docs/operations.md asks for."""


class Recovery(msgspec.Struct, frozen=True):
    """How a member came back. Seconds since the loss of its disk; heights; counts.

    `way`: `restore` (from a backup) or `join` (an empty directory; the peers give everything). `restored_s` is when
    the data directory was made (None for `join`), `answers_s` when its API answered, `caught_up_s` when its ledger
    had reached the height that the others had when it began to answer, `voting_s` when it voted again.
    `lost_height` is the head of the lost disk, `backup_height` that of the backup (0: none). `lost_blocks` and
    `lost_transactions` are missing in the recovered ledger; `backup_alone_*` those that the backup does not hold.
    """

    way: str
    member: str
    lost_height: int
    backup_height: int
    restored_height: int
    restored_s: float | None
    answers_s: float
    caught_up_s: float
    voting_s: float
    lost_blocks: int
    lost_transactions: int
    backup_alone_lost_blocks: int
    backup_alone_lost_transactions: int
    roots_agree: bool

    @property
    def ok(self) -> bool:
        """Whether nothing was lost and the ledgers agree."""
        return self.roots_agree and not self.lost_blocks and not self.lost_transactions


class Exercise:
    """Loses and recovers members of one network; every wait ends after `bound_s` seconds."""

    def __init__(self, layout: Layout, nodes: Nodes, bound_s: float) -> None:
        self._layout = layout
        self._nodes = nodes
        self._bound_s = bound_s

    def restore(self, member: Member, backup: Path, backup_height: int) -> Recovery:
        """The member has lost its disk and is back from the backup."""

        def rebuild() -> int:
            directory = self._layout.member_dir(member.id)
            return Restore(backup, directory, lambda what, done, total: None).run().height

        return self._recover(member, "restore", rebuild, backup_height)

    def join(self, member: Member) -> Recovery:
        """The member has lost its disk and is back from its peers alone."""
        return self._recover(member, "join", lambda: 0, 0)

    def _recover(self, member: Member, way: str, rebuild: Callable[[], int], backup_height: int) -> Recovery:
        lost_height = self._status(member).height
        self._nodes.end([member], kill=True)
        for name in DIRECTORIES:
            shutil.rmtree(self._layout.member_dir(member.id) / name, ignore_errors=True)
        started = time.monotonic()
        restored_height = rebuild()
        restored_s = time.monotonic() - started if way == "restore" else None
        self._nodes.start([self._nodes.network.member(member.id)])
        # Asked through a layout that is read anew: the process has another number now.
        member = self._nodes.network.member(member.id)
        self._until(member, lambda status: True, "answers", started)
        answers_s = time.monotonic() - started
        goal = max([lost_height, *(self._status(other).height for other in self._others(member))])
        self._until(member, lambda status: status.height >= goal, f"has block {goal}", started)
        caught_up_s = time.monotonic() - started
        self._until(member, lambda status: status.voting and status.ready, "votes", started)
        voting_s = time.monotonic() - started
        with Client(member.api) as own, Client([other.api for other in self._others(member)]) as others:
            lost = [height for height in range(1, lost_height + 1) if not _same(own, others, height)]
            behind = range(backup_height + 1, lost_height + 1)
            return Recovery(
                way=way,
                member=member.id,
                lost_height=lost_height,
                backup_height=backup_height,
                restored_height=restored_height,
                restored_s=None if restored_s is None else round(restored_s, 2),
                answers_s=round(answers_s, 2),
                caught_up_s=round(caught_up_s, 2),
                voting_s=round(voting_s, 2),
                lost_blocks=len(lost),
                lost_transactions=_transactions(others, lost),
                backup_alone_lost_blocks=len(behind),
                backup_alone_lost_transactions=_transactions(others, behind),
                roots_agree=_same(own, others, goal),
            )

    def _others(self, member: Member) -> list[Member]:
        return [other for other in self._nodes.network.members if other.id != member.id]

    def _status(self, member: Member) -> NodeStatus:
        found = node_status(member)
        if found is None:
            raise TestnetError(f"{member.id} does not answer", exit_code=4)
        return found

    def _until(self, member: Member, condition: Callable[[NodeStatus], bool], what: str, started: float) -> None:
        """`condition` holds of what the member says of itself; raise TestnetError when it does not in time."""
        while True:
            status = node_status(member)
            if status is not None and condition(status):
                return
            if time.monotonic() - started > self._bound_s:
                said = "it does not answer" if status is None else "; ".join(status.reasons) or f"{status.height}"
                raise TestnetError(
                    f"{self._bound_s:.0f} s after the loss it is not so that {member.id} {what} ({said})",
                    exit_code=1,
                )
            time.sleep(POLL_S)


def _same(own: Client, others: Client, height: int) -> bool:
    """Whether the recovered ledger has the others' block; one below its first was proven by the state."""
    try:
        return own.block(height).header.state_root == others.block(height).header.state_root
    except HansaError as error:
        return error.code == "block_pruned"


def _transactions(client: Client, heights: range | list[int]) -> int:
    return sum(len(client.block(height).transactions) for height in heights)
