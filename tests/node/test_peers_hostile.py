"""What a stranger, a liar or a sleeper at the peer port costs: its own connection, and nothing else."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from consensus.messages import Vote, VoteKind
from node import keys
from node.errors import InvalidFrame
from node.keys import SigningKey
from node.peers import PeerInfo, Peers, Timing, listener
from node.wire import (
    ConsensusMessage,
    Ping,
    Pong,
    Refusal,
    TransactionBatch,
    TransactionIds,
    Welcome,
    WireMessage,
    encode_frame,
)
from tests.node.mesh_kit import QUICK, WAIT_S, Intruder, Mesh, until

IDS = TransactionIds((b"h" * 32,))
VOTE = ConsensusMessage(Vote(VoteKind.COMMIT, 1, 9, b"d" * 32, 3, b"s" * 64))


@asynccontextmanager
async def talking(timing: Timing = QUICK) -> AsyncIterator[Mesh]:
    """bank-a and bank-b run and talk; insurer-a is pinned by both and is the test's to play."""
    mesh = Mesh(("bank-a", "bank-b", "insurer-a"), timing)
    await mesh.start("bank-a")
    await mesh.start("bank-b")
    await until(lambda: mesh.nodes["bank-a"].connected == ("bank-b",))
    yield mesh
    await assert_untouched(mesh)
    await mesh.close()


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    """As `talking`."""
    async with talking() as mesh:
        yield mesh


async def assert_untouched(mesh: Mesh) -> None:
    """The honest pair has never parted, and still talks."""
    assert [event for event in mesh.handlers["bank-a"].links if "bank-b" in event] == ["+bank-b"]
    mesh.nodes["bank-a"].send("bank-b", IDS)
    await until(lambda: ("bank-a", IDS) in mesh.handlers["bank-b"].messages)


async def greeted(mesh: Mesh, victim: str = "bank-a") -> Intruder:
    """insurer-a, connected with `victim` as it should be."""
    intruder = await mesh.intruder(victim, mesh.tls_keys["insurer-a"])
    await intruder.send(mesh.hello("insurer-a"))
    assert isinstance(await intruder.receive(), Welcome)
    return intruder


async def said(intruder: Intruder) -> WireMessage | None:
    """What came next besides pings, which come whenever the machine is slow."""
    while isinstance(message := await intruder.receive(), Ping):
        pass
    return message


async def test_a_strangers_certificate_is_refused(pair: Mesh) -> None:
    with capture_logs() as logs:
        try:
            intruder = await pair.intruder("bank-a", SigningKey.generate())
            await intruder.send(pair.hello("insurer-a"))
            assert await intruder.ended()
        except OSError:
            pass  # the handshake itself may already fail on this side
        await until(lambda: pair.nodes["bank-a"].refusals().get("handshake_failed") == 1)
    assert any(log["event"] == "peer.ended" and log["code"] == "handshake_failed" for log in logs)
    assert "insurer-a" not in pair.nodes["bank-a"].connected


async def test_a_member_cannot_vouch_for_another_key(pair: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL lets it pass, for a pinned key signed it; the comparison with the members does not."""
    member, thief = pair.tls_keys["insurer-a"], SigningKey.generate()
    name = f"hansa-{keys.key_fingerprint(member.public)}"
    signer = Ed25519PrivateKey.from_private_bytes(member.seed)
    forged = keys._certificate(name, f"{name}-pin", thief.public, signer, authority=False)
    monkeypatch.setattr(keys, "certificate", lambda key: forged)
    intruder = await pair.intruder("bank-a", thief)
    refusal = await intruder.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "not_a_member"
    assert await intruder.ended()


async def test_bytes_that_are_no_tls_are_refused(pair: Mesh) -> None:
    host, port = pair.nodes["bank-a"].address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(2_000))
    await until(lambda: pair.nodes["bank-a"].refusals().get("handshake_failed") == 1)
    writer.close()
    del reader


async def test_a_connection_that_says_nothing_is_given_up() -> None:
    async with talking(msgspec.structs.replace(QUICK, greeting_s=1.0)) as pair:
        host, port = pair.nodes["bank-a"].address.rsplit(":", 1)
        _, silent = await asyncio.open_connection(host, int(port))
        dumb = await pair.intruder("bank-a", pair.tls_keys["insurer-a"])
        refusal = await dumb.receive()
        assert isinstance(refusal, Refusal)
        assert refusal.code == "greeting_timeout"
        assert await dumb.ended()
        await until(lambda: pair.nodes["bank-a"].refusals().get("handshake_failed") == 1)
        silent.close()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"network": "other-0123456789ab"}, "wrong_network"),
        ({"genesis_hash": b"x" * 32}, "wrong_network"),
        ({"version": 2}, "wrong_version"),
        ({"member": "bank-b"}, "wrong_member"),
    ],
)
async def test_a_wrong_greeting_is_answered_with_the_reason(
    pair: Mesh, changes: dict[str, object], code: str
) -> None:
    with capture_logs() as logs:
        intruder = await pair.intruder("bank-a", pair.tls_keys["insurer-a"])
        await intruder.send(pair.hello("insurer-a", **changes))
        refusal = await intruder.receive()
        assert isinstance(refusal, Refusal)
        assert refusal.code == code
        assert await intruder.ended()
        await until(lambda: pair.nodes["bank-a"].refusals().get(code) == 1)
    assert any(log.get("code") == code and log["peer"] == "insurer-a" for log in logs)


async def test_other_contracts_do_not_keep_a_member_out(pair: Mesh) -> None:
    intruder = await pair.intruder("bank-a", pair.tls_keys["insurer-a"])
    await intruder.send(pair.hello("insurer-a", contracts_hash=b"o" * 32))
    assert isinstance(await intruder.receive(), Welcome)
    info = state(pair.nodes["bank-a"], "insurer-a")
    assert (info.connected, info.contracts_hash) == (True, b"o" * 32)
    intruder.close()


async def test_of_two_links_to_one_process_the_spare_one_is_refused(pair: Mesh) -> None:
    intruder = await pair.intruder("bank-b", pair.tls_keys["bank-a"])
    await intruder.send(pair.hello("bank-a", instance=pair.instances["bank-a"]))
    refusal = await intruder.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "wrong_direction"
    assert pair.nodes["bank-b"].connected == ("bank-a",)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff" + b"x" * 1_000,
        b"\x00" * 64,
        b"\x00\x00\x00\x08\x92\x63abcdef",
        encode_frame(Ping(1))[:-1] + b"\xc1",
        b"\x00\x00\x00\x04\x92\x04\xcc\x01",  # a Ping whose number is not in its shortest form
    ],
)
async def test_garbage_ends_the_connection_with_its_reason(pair: Mesh, garbage: bytes) -> None:
    intruder = await greeted(pair)
    with capture_logs() as logs:
        await intruder.send(garbage)
        assert await intruder.ended()
        await until(lambda: pair.nodes["bank-a"].refusals().get("invalid_frame") == 1)
    assert any(log.get("code") == "invalid_frame" and log["peer"] == "insurer-a" for log in logs)
    assert pair.handlers["bank-a"].links[-2:] == ["+insurer-a", "-insurer-a"]


async def test_messages_before_the_greeting_are_not_heard(pair: Mesh) -> None:
    intruder = await pair.intruder("bank-a", pair.tls_keys["insurer-a"])
    await intruder.send(VOTE)
    assert await intruder.ended()
    assert pair.nodes["bank-a"].refusals()["invalid_frame"] == 1
    assert not pair.handlers["bank-a"].messages


async def test_a_second_greeting_ends_the_connection(pair: Mesh) -> None:
    intruder = await greeted(pair)
    await intruder.send(pair.hello("insurer-a"))
    assert await intruder.ended()


async def test_a_message_that_its_reader_calls_invalid_ends_the_connection(pair: Mesh) -> None:
    def refuse(peer: str, message: WireMessage) -> None:
        if peer == "insurer-a":
            raise InvalidFrame("invalid_frame", "no sense in it")

    pair.handlers["bank-a"].react = refuse
    intruder = await greeted(pair)
    await intruder.send(encode_frame(IDS) * 3)
    assert await intruder.ended()
    assert pair.handlers["bank-a"].messages == [("insurer-a", IDS)]


async def test_a_newer_connection_of_a_member_replaces_the_older(pair: Mesh) -> None:
    older = await greeted(pair)
    newer = await greeted(pair)
    farewell = await said(older)
    assert isinstance(farewell, Refusal)
    assert farewell.code == "replaced"
    assert await older.ended()
    assert pair.handlers["bank-a"].links[-3:] == ["+insurer-a", "-insurer-a", "+insurer-a"]
    pair.nodes["bank-a"].send("insurer-a", IDS)
    assert await said(newer) == IDS
    await newer.send(VOTE)
    await until(lambda: ("insurer-a", VOTE) in pair.handlers["bank-a"].messages)
    newer.close()


async def test_a_ping_is_answered_and_silence_is_not_tolerated(pair: Mesh) -> None:
    intruder = await greeted(pair)
    await intruder.send(Ping(7))
    heard = [await intruder.receive(), await intruder.receive()]
    assert Pong(7) in heard
    assert await intruder.ended()  # this side never answers the node's own pings
    assert pair.nodes["bank-a"].refusals()["silent"] == 1
    await until(lambda: any(info.round_trip_ms is not None for info in pair.nodes["bank-a"].peers()))


def state(node: Peers, peer: str) -> PeerInfo:
    return next(info for info in node.peers() if info.id == peer)


async def fill(node: Peers, peer: str, message: WireMessage) -> None:
    """Send `message` until the socket takes no more."""
    async with asyncio.timeout(WAIT_S):
        while not state(node, peer).queued_bytes:
            node.send(peer, message)
            await asyncio.sleep(0)


def freeze(intruder: Intruder) -> None:
    """From now on nothing is read there, and the kernel's buffers are small."""
    intruder.writer.transport.pause_reading()  # type: ignore[attr-defined]


async def test_a_frozen_peer_costs_bounded_memory(pair: Mesh) -> None:
    intruder = await greeted(pair)
    freeze(intruder)
    node = pair.nodes["bank-a"]
    batch = TransactionBatch((b"t" * 100_000,))
    for _ in range(200):
        node.send("insurer-a", batch)
        assert state(node, "insurer-a").queued_bytes <= 1024 * 1024
        await asyncio.sleep(0)
    assert state(node, "insurer-a").dropped_messages > 0
    await until(lambda: node.refusals().get("silent", 0) + node.refusals().get("not_reading", 0) == 1)
    assert "insurer-a" not in node.connected
    intruder.close()


async def test_a_peer_that_talks_but_does_not_read_is_dropped(pair: Mesh) -> None:
    intruder = await greeted(pair)
    freeze(intruder)
    node = pair.nodes["bank-a"]

    def answer(peer: str, message: WireMessage) -> None:
        if peer == "insurer-a":
            node.send(peer, TransactionBatch((b"t" * 400_000,)))

    pair.handlers["bank-a"].react = answer
    async with asyncio.timeout(WAIT_S):
        while not node.refusals().get("not_reading"):
            await intruder.send(IDS)
            assert "silent" not in node.refusals()
            await asyncio.sleep(0.005)
    intruder.close()


async def test_votes_without_room_end_the_link(pair: Mesh) -> None:
    intruder = await greeted(pair)
    freeze(intruder)
    node = pair.nodes["bank-a"]
    blocking = TransactionBatch((b"t" * 900_000,))
    await fill(node, "insurer-a", blocking)
    for _ in range(3_000):
        if not node.send("insurer-a", VOTE):
            break
    await until(lambda: node.refusals().get("queue_full") == 1)
    intruder.close()


async def test_a_vote_overtakes_bulk_that_waits(pair: Mesh) -> None:
    intruder = await greeted(pair)
    freeze(intruder)
    node = pair.nodes["bank-a"]
    await fill(node, "insurer-a", TransactionBatch((b"t" * 100_000,)))
    for _ in range(4):
        node.send("insurer-a", TransactionBatch((b"late" * 25_000,)))
    node.send("insurer-a", VOTE)
    intruder.writer.transport.resume_reading()  # type: ignore[attr-defined]
    heard: list[WireMessage | None] = []
    while VOTE not in heard:
        heard.append(await intruder.receive())
    assert TransactionBatch((b"late" * 25_000,)) not in heard
    intruder.close()


async def test_unfinished_handshakes_are_limited(pair: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "UNPROVEN_HOST_MAX", 3)
    host, port = pair.nodes["bank-a"].address.rsplit(":", 1)
    idle = [socket.create_connection((host, int(port))) for _ in range(6)]
    await until(lambda: pair.nodes["bank-a"].refusals().get("too_many_connections") == 3)
    for connection in idle:
        connection.close()
    async with asyncio.timeout(WAIT_S):
        while "insurer-a" not in pair.nodes["bank-a"].connected:
            try:
                (await greeted(pair)).close()
                break
            except (AssertionError, OSError):
                await asyncio.sleep(0.01)


async def test_repeated_refusals_do_not_flood_the_log(pair: Mesh) -> None:
    host, port = pair.nodes["bank-a"].address.rsplit(":", 1)
    with capture_logs() as logs:
        for count in range(1, 21):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"x" * 100)
            await until(lambda count=count: pair.nodes["bank-a"].refusals().get("handshake_failed") == count)  # type: ignore[misc]
            writer.close()
    assert 1 <= len([log for log in logs if log.get("code") == "handshake_failed"]) < 10
