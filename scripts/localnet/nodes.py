"""The nodes of a test network as a whole: started, stopped, asked, and waited for until they agree."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from node.client import Client, NodeStatus
from node.errors import HansaError
from scripts.localnet import processes
from scripts.localnet.layout import ROOT, Layout, Member, Network, Process, TestnetError
from scripts.localnet.wiring import Wiring, read_plan

START_TIMEOUT_S = 60.0
POLL_S = 0.1
HANSA = (sys.executable, "-P", "-c", "import sys; from node.cli.main import main; sys.exit(main())")
"""The `hansa` command, run by this very Python from this very checkout."""


class MemberStatus(msgspec.Struct, frozen=True):
    """One row of `scripts/testnet status`. What only a running node knows is None when it does not answer."""

    id: str
    pid: int | None
    alive: bool
    api: str
    data_dir: str
    height: int | None = None
    view: int | None = None
    state_root: str | None = None
    ready: bool = False
    rss_mb: float | None = None
    rss_peak_mb: float | None = None


class Nodes:
    """The processes of the test network in one directory; `testnet.json` is kept true."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.network: Network = layout.load()

    def start(self, members: Sequence[Member], code: Path = ROOT) -> list[Member]:
        """Each of the members runs, and the proxy of a proxied network; return those that were started just now.

        Those run what lies in `code`. Raise TestnetError for used ports.
        """
        self._start_proxy()
        stopped = [member for member in members if not processes.is_alive(member.pid, member.started_ticks)]
        wanted = [address for member in stopped for address in (member.listen, _address(member.api))]
        used = processes.used_addresses(wanted)
        if used:
            raise TestnetError(
                f"in use by another program: {', '.join(used)}; end it, or take another --base-port and --dir"
            )
        return [self._start(member, code) for member in stopped]

    @property
    def wiring(self) -> Wiring | None:
        """The links between the nodes, where they lead through a proxy."""
        return Wiring(read_plan(self._layout.proxy_file)) if self._layout.proxy_file.exists() else None

    def _start_proxy(self) -> None:
        """The proxy runs, if the network was founded with one. Its links are whole after its start."""
        proxy = self.network.proxy
        if not self._layout.proxy_file.exists() or (proxy and processes.is_alive(proxy.pid, proxy.started_ticks)):
            return
        command = [sys.executable, "-P", "-m", "scripts.localnet.proxy", str(self._layout.proxy_file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = Process(*processes.start(command, environment, self._layout.proxy_log_file))
        self.network = msgspec.structs.replace(self.network, proxy=started)
        self._layout.save(self.network)

    def end_proxy(self) -> None:
        """No proxy runs."""
        proxy = self.network.proxy
        if proxy is not None:
            processes.end(proxy.pid, proxy.started_ticks, kill=False)

    def runs(self, member: Member) -> bool:
        """Whether the node's process runs; `member` may be of an earlier start."""
        now = self.network.member(member.id)
        return processes.is_alive(now.pid, now.started_ticks)

    def pause(self, member: Member) -> bool:
        """The node's process stands still, its sockets open (SIGSTOP); return whether one ran."""
        return self._tell(member, signal.SIGSTOP)

    def resume(self, member: Member) -> bool:
        """A paused node goes on; return whether its process runs."""
        return self._tell(member, signal.SIGCONT)

    @staticmethod
    def _tell(member: Member, number: signal.Signals) -> bool:
        runs = processes.is_alive(member.pid, member.started_ticks)
        processes.tell(member.pid, member.started_ticks, number)
        return runs

    def _start(self, member: Member, code: Path) -> Member:
        environment = {
            **os.environ,
            "HANSA_PASSPHRASE_FILE": str(self._layout.passphrase_file),
            "PYTHONPATH": str(code),
        }
        command = [*HANSA, "run", "--dir", str(self._layout.member_dir(member.id))]
        pid, ticks = processes.start(command, environment, self._layout.log_file(member.id))
        started = msgspec.structs.replace(member, pid=pid, started_ticks=ticks)
        members = tuple(started if known.id == member.id else known for known in self.network.members)
        self.network = msgspec.structs.replace(self.network, members=members)
        self._layout.save(self.network)
        return started

    def end(self, members: Sequence[Member], *, kill: bool) -> list[Member]:
        """None of the members runs; return those that did.

        A node that does not stop within 20 s is killed: that loses nothing decided.
        """
        running = [member for member in members if processes.is_alive(member.pid, member.started_ticks)]
        if not kill:
            for member in members:
                processes.interrupt(member.pid, member.started_ticks)
                self.resume(member)  # a paused process takes no signal but this one
        for member in members:
            if not processes.end(member.pid, member.started_ticks, kill=kill):
                processes.end(member.pid, member.started_ticks, kill=True)
        return running

    def wipe(self, member: Member) -> Member:
        """The node starts over without its data: it has its keys, fetches the blocks, and abstains for a while."""
        self.end([member], kill=True)
        self.delete_data(member)
        return self.start([self.network.member(member.id)])[0]

    def delete_data(self, member: Member) -> None:
        """A node that does not run has lost all but its keys."""
        shutil.rmtree(member.data_dir, ignore_errors=True)
        for beside in ("snapshots", "joining"):
            shutil.rmtree(Path(member.data_dir).parent / beside, ignore_errors=True)

    def status(self, member: Member) -> MemberStatus:
        """The process and what the node says of itself."""
        row = MemberStatus(
            id=member.id,
            pid=member.pid,
            alive=processes.is_alive(member.pid, member.started_ticks),
            api=member.api,
            data_dir=member.data_dir,
        )
        answer = node_status(member) if row.alive else None
        used = processes.usage(member.pid) if row.alive and member.pid is not None else None
        if answer is not None:
            row = msgspec.structs.replace(
                row,
                height=answer.height,
                view=answer.view,
                state_root=answer.state_root,
                ready=answer.ready,
            )
        if used is not None:
            row = msgspec.structs.replace(row, rss_mb=round(used.rss_mb, 1), rss_peak_mb=round(used.rss_peak_mb, 1))
        return row

    def statuses(self) -> list[MemberStatus]:
        """A row for each member, in their order."""
        return [self.status(member) for member in self.network.members]

    def wait_answers(self, members: Sequence[Member], timeout_s: float = START_TIMEOUT_S) -> None:
        """The API of each of the members, which were started, answers; whether they are ready is not asked.

        Raise TestnetError for one that ended, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        for member in members:
            while node_status(member) is None:
                if not processes.is_alive(member.pid, member.started_ticks):
                    raise TestnetError(f"{member.id} ended: {self.last_log_line(member)}", exit_code=3)
                if time.monotonic() > deadline:
                    raise TestnetError(
                        f"{member.id} runs (pid {member.pid}) and does not answer after {timeout_s:.0f} s: "
                        f"{self.last_log_line(member)}",
                        exit_code=1,
                    )
                time.sleep(POLL_S)

    def wait_agreement(
        self, timeout_s: float = START_TIMEOUT_S, on_wait: Callable[[str], None] = lambda _: None
    ) -> int:
        """All running nodes stand ready at one height with one state root and nothing pending; return the height.

        Of a node that does not vote yet, because its data was wiped, only agreement is asked. Raise
        TestnetError that says what each of them lacks when they are not in time, or when one ended.
        """
        deadline = time.monotonic() + timeout_s
        alive = [m for m in self.network.members if processes.is_alive(m.pid, m.started_ticks)]
        while True:
            answers: dict[str, NodeStatus | None] = {}
            for member in alive:
                if not processes.is_alive(member.pid, member.started_ticks):
                    raise TestnetError(f"{member.id} ended: {self.last_log_line(member)}", exit_code=3)
                answers[member.id] = node_status(member)
            disagreement = _disagreement(answers)
            if not disagreement:
                return max((answer.height for answer in answers.values() if answer), default=0)
            on_wait(disagreement)
            if time.monotonic() > deadline:
                raise TestnetError(f"the nodes do not agree after {timeout_s:.0f} s: {disagreement}", exit_code=1)
            time.sleep(POLL_S)

    def last_log_line(self, member: Member) -> str:
        """The last line that the node wrote."""
        try:
            lines = self._layout.log_file(member.id).read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it wrote nothing"


def node_status(member: Member) -> NodeStatus | None:
    """What the node says of itself, or None when it does not answer."""
    try:
        with Client(member.api, timeout_s=2.0, patience_s=0.0) as client:
            return client.status()
    except HansaError:
        return None


def _disagreement(answers: dict[str, NodeStatus | None]) -> str:
    """Why the nodes do not stand as one, or an empty string."""
    silent = [member for member, answer in answers.items() if answer is None]
    if silent:
        return f"no answer from {', '.join(silent)}"
    known = {member: answer for member, answer in answers.items() if answer is not None}
    unready = [
        f"{member} ({'; '.join(answer.reasons) or 'not ready'})"
        for member, answer in known.items()
        if not answer.ready and not _only_abstains(answer)
    ]
    if unready:
        return f"not ready: {', '.join(unready)}"
    if len({(answer.height, answer.state_root) for answer in known.values()}) > 1:
        return "heights " + ", ".join(f"{member} {answer.height}" for member, answer in known.items())
    busy = [
        f"{member} {answer.pending_transactions}" for member, answer in known.items() if answer.pending_transactions
    ]
    return f"transactions pending: {', '.join(busy)}" if busy else ""


def _only_abstains(answer: NodeStatus) -> bool:
    """Whether all that the node lacks is its vote: after a wipe it agrees with the others before it votes again."""
    return not answer.voting and len(answer.reasons) == 1


def _address(url: str) -> str:
    return url.removeprefix("http://")
