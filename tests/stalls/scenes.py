"""The staged stalls: what is broken, whom is asked, and what the answer must name. `scripts/stalls` prints them.

A scene breaks a running network of four banks, lets some time pass, and asks the nodes in `asked`. `culprits` must
all be among the answer's, as (member, cause), and the headline must name the members in `named`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from node.client.answers import Diagnosis
from node.runtime.node import Node
from tests.simulation.nodes.founding import Shape, founding_of
from tests.stalls.releases import censoring, idling, miscounting, other_code
from tests.stalls.stage import SHAPE, Stage, StageHost

SMALL_BLOCKS = SHAPE._replace(block_transactions_max=8)
"""A few payments fill the queue."""


class Scene(NamedTuple):
    """One staged cause."""

    name: str
    staged: str
    play: Callable[[Stage], None]
    asked: tuple[str, ...]
    culprits: tuple[tuple[str, str], ...]
    moving: bool | None = False
    shape: Shape = SHAPE


class Answer(NamedTuple):
    """What a node said in a scene."""

    scene: Scene
    asked: str
    diagnosis: Diagnosis
    ready: bool


def two_killed(stage: Stage) -> None:
    for name in ("bank-2", "bank-3"):
        stage.host(name).crash()
    stage.pass_time(8_000)


def split(stage: Stage) -> None:
    for one in ("bank-0", "bank-1"):
        for other in ("bank-2", "bank-3"):
            stage.network.cut(one, other)
            stage.network.cut(other, one)
    stage.pass_time(20_000)


def cut_off(stage: Stage) -> None:
    for other in ("bank-0", "bank-1", "bank-3"):
        stage.network.cut("bank-2", other)
        stage.network.cut(other, "bank-2")
    stage.pass_time(20_000)


def one_link_cut(stage: Stage) -> None:
    stage.network.cut("bank-2", "bank-3")
    stage.network.cut("bank-3", "bank-2")
    stage.pass_time(20_000)


def primary_hangs(stage: Stage) -> None:
    # A slow network: the change of primary takes its time, and the question comes in the middle of it.
    stage.network.delay_us = (400_000, 500_000)
    stage.host(primary(stage)).pause()
    stage.pass_time(2_900)


def primary_hung(stage: Stage) -> None:
    stage.host(primary(stage)).pause()
    stage.pass_time(20_000)


def primary(stage: Stage) -> str:
    """The primary of the height in work."""
    host = stage.primary_now()
    assert host is not None
    return host.id


def primary_idles(stage: Stage) -> None:
    stage.restart("bank-0", make=idling)
    stage.network.delay_us = (400_000, 500_000)
    stage.pass_time(1_600)


def primary_censors(stage: Stage) -> None:
    stage.restart("bank-0", make=censoring)
    stage.pass_time(20_000)


def primary_slow(stage: Stage) -> None:
    stage.network.delay_us = (40_000, 50_000)
    stage.payments_at_once = 8
    stage.pass_time(16_000)
    stage.late_us["bank-0"] = 500_000
    stage.pass_time(12_000)


def link_to_primary_cut_on_a_quiet_day(stage: Stage) -> None:
    stage.stop_paying()
    stage.pass_time(4_000)
    stage.network.cut("bank-3", "bank-0")
    stage.network.cut("bank-0", "bank-3")
    stage.pass_time(16_000)


def sends_lost(stage: Stage) -> None:
    for other in ("bank-1", "bank-2", "bank-3"):
        stage.network.cut("bank-0", other)
    # Asked as soon as the others' connections are gone: what it says first is what it goes on to say.
    stage.pass_time_until(lambda: len(stage.why("bank-0").missing) == 3, 20_000)


def own_disk_full(stage: Stage) -> None:
    # A node whose disk fails stops at once: what is left to ask is its directory.
    stage.host("bank-2").disk.full = True
    stage.pass_time_until(lambda: not stage.host("bank-2").up, 3_000)


def disk_at_its_reserve(stage: Stage) -> None:
    host = stage.host("bank-2")
    host.disk_free = 40 * 10**9
    stage.restart("bank-2", make=Node)
    stage.pass_time(6_000)
    host.disk_free = 180 * 10**6
    stage.pass_time(3_000)
    stage.host("bank-3").crash()
    stage.pass_time(6_000)


def disk_freed_again(stage: Stage) -> None:
    disk_at_its_reserve(stage)
    stage.host("bank-2").disk_free = 40 * 10**9
    stage.pass_time(8_000)


def other_contracts(stage: Stage) -> None:
    stage.restart("bank-2", make=other_code)
    stage.pass_time(8_000)
    stage.host("bank-3").crash()
    stage.pass_time(8_000)


def other_genesis(stage: Stage) -> None:
    host = stage.host("bank-2")
    host.crash()
    stage.pass_time(100)
    founding = founding_of(SHAPE._replace(drift_ms=4_000))
    host.definition = founding.network
    host.disk.replace(founding.contents)
    host.start()
    stage.pass_time(4_000)
    stage.host("bank-3").crash()
    stage.pass_time(8_000)


def key_twice(stage: Stage) -> None:
    # A copied machine: the same keys, the same disk, started elsewhere.
    twin = StageHost(stage, 3)
    twin.disk.replace(stage.host("bank-3").disk.copy())
    stage.twins.append(twin)
    twin.start()
    stage.pass_time(12_000)
    stage.host("bank-2").crash()
    stage.pass_time(8_000)


def diverged(stage: Stage) -> None:
    stage.restart("bank-2", make=miscounting)
    stage.pass_time(8_000)
    stage.host("bank-3").crash()
    stage.pass_time(8_000)


def clock_off(stage: Stage) -> None:
    stage.host("bank-2").clock.offset_ms = 60_000
    stage.pass_time(8_000)


def clock_off_while_another_is_down(stage: Stage) -> None:
    stage.host("bank-2").clock.offset_ms = -60_000
    stage.pass_time(5_000)
    stage.host("bank-3").crash()
    stage.pass_time(12_000)


def disk_full(stage: Stage) -> None:
    stage.host("bank-2").disk.full = True
    stage.pass_time(3_000)
    stage.host("bank-3").crash()
    stage.pass_time(6_000)


def wiped(stage: Stage) -> None:
    host = stage.host("bank-2")
    host.crash()
    stage.pass_time(1_000)
    # The one that is down takes its heights with it: nobody passes the height up to which the wiped one is silent.
    stage.host("bank-3").crash()
    host.lose_disk(None)
    host.start()
    stage.pass_time(12_000)


def slow_executor(stage: Stage) -> None:
    stage.host("bank-3").crash()
    stage.pass_time(3_000)
    stage.host("bank-1").pace.processor = 1_000
    stage.pass_time(1_900)


def woke(stage: Stage) -> None:
    stage.host("bank-1").pause()
    stage.pass_time(42_000)
    stage.host("bank-1").resume()
    stage.pass_time(4_000)


def idle(stage: Stage) -> None:
    stage.stop_paying()
    stage.pass_time(20_000)


SCENES: tuple[Scene, ...] = (
    Scene(
        "two_killed",
        "two of four nodes killed",
        two_killed,
        ("bank-0", "bank-1"),
        (("bank-2", "member_down"), ("bank-3", "member_down")),
    ),
    Scene(
        "split_left",
        "network cut between bank-0, bank-1 and bank-2, bank-3",
        split,
        ("bank-0",),
        (("bank-2", "network_split"), ("bank-3", "network_split")),
    ),
    Scene(
        "split_right",
        "the same, asked on the other side",
        split,
        ("bank-3",),
        (("bank-0", "network_split"), ("bank-1", "network_split")),
    ),
    Scene(
        "sends_lost",
        "nothing that bank-0 sends arrives, asked there as soon as the others have given it up",
        sends_lost,
        ("bank-0",),
        (("bank-0", "isolated"),),
    ),
    Scene("cut_off_self", "all links of bank-2 cut, asked there", cut_off, ("bank-2",), (("bank-2", "isolated"),)),
    Scene(
        "cut_off_others",
        "the same, asked at the others",
        cut_off,
        ("bank-0", "bank-3"),
        (("bank-2", "member_unreachable"),),
        moving=True,
    ),
    Scene(
        "one_link_cut",
        "only the link bank-2 – bank-3 cut",
        one_link_cut,
        ("bank-3",),
        (("bank-2", "link_cut"),),
        moving=True,
    ),
    Scene(
        "quiet_link_cut",
        "only the link bank-3 – primary bank-0 cut while nothing waits",
        link_to_primary_cut_on_a_quiet_day,
        ("bank-3",),
        (("bank-0", "link_cut"),),
        moving=True,
    ),
    Scene(
        "quiet_link_cut_others",
        "the same, asked at the others",
        link_to_primary_cut_on_a_quiet_day,
        ("bank-1",),
        (),
        moving=True,
    ),
    Scene(
        "primary_hangs",
        "the primary stands still, asked during the change",
        primary_hangs,
        ("bank-2",),
        (("bank-0", "member_silent"),),
    ),
    Scene(
        "primary_hung",
        "the same, 20 s later",
        primary_hung,
        ("bank-2",),
        (("bank-0", "member_unreachable"),),
        moving=True,
    ),
    Scene(
        "primary_idles",
        "the primary lives and proposes nothing",
        primary_idles,
        ("bank-2",),
        (("bank-0", "primary_silent"),),
    ),
    Scene(
        "primary_censors",
        "the primary leaves one bank's payments out, and was replaced",
        primary_censors,
        ("bank-1",),
        (("bank-0", "primary_censoring"),),
        moving=True,
    ),
    Scene(
        "primary_slow",
        "the primary's sends are half a second late under a full queue, and it was replaced",
        primary_slow,
        # One that judged for itself: bank-2 may only have joined the others when f + 1 of them asked.
        ("bank-3",),
        (("bank-0", "primary_slow"),),
        moving=True,
        shape=SMALL_BLOCKS,
    ),
    Scene(
        "clock_off_self",
        "clock of bank-2 a minute ahead, asked there",
        clock_off,
        ("bank-2",),
        (("bank-2", "clock_off"),),
        moving=True,
    ),
    Scene(
        "clock_off_others",
        "the same, asked at the others",
        clock_off,
        ("bank-0", "bank-3"),
        (("bank-2", "clock_off"),),
        moving=True,
    ),
    Scene(
        "clock_off_and_down",
        "clock of bank-2 a minute behind while bank-3 is down",
        clock_off_while_another_is_down,
        ("bank-0", "bank-2"),
        (("bank-2", "clock_off"), ("bank-3", "member_down")),
        moving=None,
    ),
    Scene(
        "disk_full",
        "disk of bank-2 full, then bank-3 killed",
        disk_full,
        ("bank-0", "bank-1"),
        (("bank-2", "disk_failing"), ("bank-3", "member_down")),
    ),
    Scene(
        "disk_full_self",
        "disk of bank-2 full, asked there with `hansa why --dir`",
        own_disk_full,
        ("bank-2",),
        (("bank-2", "disk_failing"),),
    ),
    Scene(
        "disk_reserve",
        "disk of bank-2 filled up to the reserve, then bank-3 killed",
        disk_at_its_reserve,
        ("bank-0", "bank-2"),
        (("bank-2", "disk_full"), ("bank-3", "member_down")),
    ),
    Scene(
        "disk_freed",
        "the same, and then space was freed on the disk of bank-2",
        disk_freed_again,
        ("bank-2",),
        (("bank-3", "member_down"),),
        moving=True,
    ),
    Scene(
        "other_contracts",
        "bank-2 runs other contract code, then bank-3 killed",
        other_contracts,
        ("bank-0", "bank-2"),
        (("bank-2", "contracts_differ"), ("bank-3", "member_down")),
    ),
    Scene(
        "other_genesis",
        "bank-2 has another network.toml, then bank-3 killed",
        other_genesis,
        ("bank-0", "bank-1"),
        (("bank-2", "other_network"), ("bank-3", "member_down")),
    ),
    Scene(
        "key_twice",
        "a copy of bank-3 started elsewhere, then bank-2 killed",
        key_twice,
        ("bank-0", "bank-3"),
        (("bank-3", "key_twice"), ("bank-2", "member_down")),
    ),
    Scene(
        "diverged",
        "bank-2 counts otherwise, then bank-3 killed",
        diverged,
        ("bank-0", "bank-2"),
        (("bank-2", "diverged"), ("bank-3", "member_down")),
    ),
    Scene(
        "wiped",
        "bank-2 wiped and back, bank-3 down",
        wiped,
        ("bank-0", "bank-2"),
        (("bank-2", "memory_lost"), ("bank-3", "member_down")),
    ),
    Scene(
        "slow_executor",
        "bank-3 down, the executor of bank-1 twenty thousand times slower",
        slow_executor,
        ("bank-1",),
        (("bank-1", "executor_slow"), ("bank-3", "member_down")),
        moving=True,
    ),
    Scene("woke", "bank-1 stood still for 42 s and woke", woke, ("bank-1",), (("bank-1", "paused"),), moving=True),
    Scene("idle", "nothing waits", idle, ("bank-0", "bank-3"), (), moving=True),
)


def play(scene: Scene) -> Iterator[Answer]:
    """Stage the scene and ask; give the answers."""
    with Stage(shape=scene.shape).playing() as stage:
        scene.play(stage)
        for asked in scene.asked:
            ready = stage.host(asked).up and stage.ready(asked)[0]
            yield Answer(scene, asked, stage.why(asked), ready)
