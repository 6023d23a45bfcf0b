"""How catch-up is shown: in the node's status, in its metrics, and by `hansa sync` until nothing is missing."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from consensus.members import Members, Validator
from consensus.status import Abstention, PeerStatus, Phase, ReplicaStatus
from node.api import ApiServer
from node.cli import syncing
from node.cli.main import main
from node.client.answers import Culprit, Diagnosis, JoinStatus, NodeStatus, SyncStatus
from node.diagnosis import CAUSES, judge
from node.diagnosis.facts import BEHIND_BLOCKS_MAX
from node.runtime.catching_up import add_sync_gauges, network_height, sync_status
from node.runtime.metrics import Metrics
from node.sync import PeerAside, PeerAtWork, Progress
from tests.node.diagnosis_world import facts as diagnosed
from tests.node.memory_node import MemoryNode

MEMBERS = Members(tuple(Validator(f"m{index}", bytes((index,)) * 32) for index in range(4)))
IDLE = Progress(False, 0, 0, 0, 0.0, 0.0, 0, 0, 0, 0, 0, (), 0.0, 0.0, None, (), None, 0)
BUSY = Progress(
    running=True,
    from_height=10,
    height=40,
    target=100,
    blocks_per_s=12.34,
    transactions_per_s=456.78,
    blocks_total=30,
    transactions_total=900,
    bytes_total=5000,
    faults_total=1,
    held_bytes=1234,
    asks=(PeerAtWork("m1", 41, 72, 0.25),),
    waited_s=0.5,
    elapsed_s=2.5,
    eta_s=4.9,
    aside=(PeerAside("m2", "slow: overtaken by m1", 0.75),),
    problem="m3: gone",
    unservable=0,
)


def replica(*heard: str, target: int | None = None) -> ReplicaStatus:
    """A replica that has heard the status of these members."""
    return ReplicaStatus(
        member="m0",
        height=41,
        view=0,
        head=bytes(32),
        start_view=0,
        primary="m1",
        phase=Phase.IDLE if target is None else Phase.CATCH_UP,
        digest=None,
        prepared_view=None,
        voted_prepare=(),
        voted_commit=(),
        missing=(),
        quorum=3,
        asked=None,
        askers=(),
        waiting=False,
        passed_over=0,
        abstaining="",
        abstain_until=0,
        suspicion="",
        refusal="",
        catch_up_target=target,
        peers=tuple(PeerStatus(member, 500, 0, bytes(32), 0, 10) for member in heard),
        next_event="",
        next_event_in_ms=None,
        abstention=Abstention.NONE,
        last_suspicion=None,
    )


def test_the_networks_height_is_what_is_certain_and_never_replaces_this_nodes() -> None:
    """One member's word of height 500 is no more than its word."""
    assert network_height(40, replica("m1")) == 40
    assert network_height(40, replica("m1", "m2", target=100)) == 100
    status = sync_status(40, BUSY, replica("m1", "m2", target=100), MEMBERS)
    assert (status.height, status.target, status.running, status.caught_up) == (40, 100, True, False)
    assert status.asked[0].id == "m1"
    assert status.left_out[0].reason == "slow: overtaken by m1"
    assert (status.blocks_per_s, status.eta_ms, status.waited_ms, status.elapsed_ms) == (12.3, 4900, 500, 2500)


@pytest.mark.parametrize(
    ("heard", "target", "caught_up"),
    [
        ((), None, False),
        (("m1",), None, False),
        (("m1", "stranger"), None, False),
        (("m1", "m2"), None, True),
        (("m1", "m2"), 100, False),
        (("m1", "m2"), 40, True),
    ],
)
def test_a_node_has_caught_up_when_enough_members_were_heard_to_know(
    heard: tuple[str, ...], target: int | None, caught_up: bool
) -> None:
    assert sync_status(40, IDLE, replica(*heard, target=target), MEMBERS).caught_up == caught_up


def test_a_network_of_one_member_has_nobody_to_hear() -> None:
    assert sync_status(40, IDLE, replica(), Members(MEMBERS.validators[:1])).caught_up


@pytest.mark.parametrize("missing", [1, BEHIND_BLOCKS_MAX, BEHIND_BLOCKS_MAX + 1, 500])
def test_a_node_that_misses_more_than_a_few_blocks_is_not_ready(missing: int) -> None:
    known = diagnosed()
    height = known.status.height
    behind = msgspec.structs.replace(known.status, phase=Phase.CATCH_UP, catch_up_target=height - 1 + missing)
    judged = judge(msgspec.structs.replace(known, status=behind))
    assert judged.ready == (missing <= BEHIND_BLOCKS_MAX)
    if not judged.ready:
        assert any("behind" in reason and str(height - 1 + missing) in reason for reason in judged.reasons)


def test_metrics_show_catch_up() -> None:
    metrics = Metrics()
    add_sync_gauges(metrics.gauge, lambda: BUSY)
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name.startswith("hansa_sync_")
    }
    assert found["hansa_sync_running"] == 1
    assert found["hansa_sync_target_height"] == 100
    assert found["hansa_sync_blocks_per_second"] == 12.34
    assert found["hansa_sync_held_bytes"] == 1234
    assert found["hansa_sync_peers_asked"] == 1
    assert len(found) == 13


# --- the command ---------------------------------------------------------------------------------------------


class CatchingUp(MemoryNode):
    """A node whose status goes through `steps`, one for each time that it is asked; the last one stays.

    It votes when it has been asked `abstains` times more than there are steps.
    """

    def __init__(
        self,
        steps: list[tuple[SyncStatus | None, JoinStatus | None]],
        abstains: int = 0,
        role: str = "validator",
        cause: str = "memory_lost",
    ) -> None:
        super().__init__()
        self.steps = steps
        self.abstains = abstains
        self.role = role
        self.cause = cause
        self.asked = 0

    def why(self) -> Diagnosis:
        culprit = Culprit(member="bank-a", cause=self.cause, sentence="This node (bank-a) tells why.")
        return Diagnosis(moving=True, sentences=("Blocks are made.",), culprits=(culprit,))

    def status(self) -> NodeStatus:
        self.asked += 1
        sync, joining = self.steps[min(self.asked, len(self.steps)) - 1]
        height = 0 if sync is None else sync.height
        return msgspec.structs.replace(
            super().status(),
            height=height,
            sync=sync,
            joining=joining,
            network_height=max(height, 100),
            role=self.role,
            voting=self.asked >= len(self.steps) + self.abstains,
            reasons=("It votes again above height 102.",),
        )


@contextmanager
def serving(node: MemoryNode) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ApiServer(node, "127.0.0.1", 0)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield server.url
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


RUNNING = sync_status(40, BUSY, replica("m1", "m2", target=100), MEMBERS)
WAITING = sync_status(0, IDLE, replica(), MEMBERS)
DONE = msgspec.structs.replace(
    sync_status(100, IDLE, replica("m1", "m2"), MEMBERS), blocks=100, bytes=50_000, target=100
)
JOINING = JoinStatus("fetching", 90, 1, 4, 3 * 1024 * 1024, 9 * 1024 * 1024, 1_000_000, ("m1",))


def test_sync_ends_when_the_node_has_caught_up_and_prints_one_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "POLL_S", 0.0)
    monkeypatch.setattr(syncing, "LINE_S", 0.0)
    node = CatchingUp([(WAITING, None), (WAITING, JOINING), (RUNNING, None), (DONE, JOINING), (DONE, None)])
    with serving(node) as url:
        code = main(("sync", "--node", url, "--json"))
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert code == 0
    assert node.asked == 5
    assert (document["height"], document["network_height"], document["sync"]["caught_up"]) == (100, 100, True)
    lines = captured.err.splitlines()
    assert lines[1] == "hansa: fetching, MiB 3 of 9 of the snapshot of height 90, 1000 kB/s"
    assert lines[2] == "hansa: height 40 of 100 12.3 blocks/s, 456.8 transactions/s, 4.9 s left (m3: gone)"


def test_sync_of_a_node_that_misses_nothing_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(CatchingUp([(DONE, None)])) as url:
        assert main(("sync", "--node", url)) == 0
    assert "caught up: bank-a is at height 100 and votes" in capsys.readouterr().out


def test_sync_goes_on_until_the_node_votes_and_says_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended while the node still abstained: who restored the next member then took the quorum's memory away."""
    monkeypatch.setattr(syncing, "POLL_S", 0.0)
    monkeypatch.setattr(syncing, "LINE_S", 0.0)
    node = CatchingUp([(DONE, None)], abstains=3)
    with serving(node) as url:
        assert main(("sync", "--node", url, "--json")) == 0
    captured = capsys.readouterr()
    assert node.asked == 4
    assert json.loads(captured.out)["voting"] is True
    assert (
        captured.err.splitlines()
        == ["hansa: caught up, awaiting its vote: height 100 of 100 It votes again above height 102."] * 3
    )


def test_sync_of_an_observer_awaits_no_vote(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(CatchingUp([(DONE, None)], abstains=99, role="observer")) as url:
        assert main(("sync", "--node", url)) == 0
    assert capsys.readouterr().out.startswith("caught up: bank-a is at height 100\n")


@pytest.mark.parametrize("cause", sorted(syncing.HOPELESS))
def test_sync_of_a_member_that_never_votes_again_fails(cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cause in CAUSES
    with serving(CatchingUp([(DONE, None)], abstains=99, cause=cause)) as url:
        assert main(("sync", "--node", url)) == 4
    told = capsys.readouterr().err
    assert (
        "not_ready: bank-a has caught up and does not vote again by itself: This node (bank-a) tells why." in told
    )


@pytest.mark.slow
def test_sync_of_a_node_that_stays_away_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "AWAY_S_MAX", 0.0)
    monkeypatch.setattr(syncing, "POLL_S", 0.0)
    assert main(("sync", "--node", "http://127.0.0.1:9", "--json")) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"]


def test_status_tells_of_catch_up_and_keeps_the_heights_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(CatchingUp([(RUNNING, None)])) as url:
        assert main(("status", "--node", url)) == 0
    shown = capsys.readouterr().out
    assert "at height 100, by what others say" in shown
    assert "m1 sends 41 to 72" in shown
    assert "m2 is left out: slow: overtaken by m1" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("height")] == [["height", "40"]]


def test_status_of_a_pruned_ledger_says_that_some_older_blocks_may_be_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It called all blocks below the first pruned, also those that `hansa archive import` had put back."""
    node = CatchingUp([(DONE, None)])
    answer = msgspec.structs.replace(node.status(), first_block=301)
    monkeypatch.setattr(node, "status", lambda: answer)
    with serving(node) as url:
        assert main(("status", "--node", url)) == 0
    assert "301: of those below only what is under legal hold or was put back" in capsys.readouterr().out
