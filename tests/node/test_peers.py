"""Members find each other, speak, ask, go away and come back. Real TLS on real sockets."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import uvloop

from node.config import MemberConfig
from node.errors import ConfigError, Unavailable
from node.keys import SigningKey, certificate_key
from node.peers.link import SendQueue
from node.wire import (
    Blocks,
    FetchBlocks,
    FetchPayload,
    PayloadReply,
    TrafficClass,
    TransactionBatch,
    TransactionIds,
    WireMessage,
)
from tests.node.mesh_kit import QUICK, Handler, Mesh, free_port, until

PAIR = (("bank-a", "bank-b"), ("bank-b", "bank-a"))
IDS = TransactionIds((b"h" * 32,))


@pytest.fixture
async def trio() -> AsyncIterator[Mesh]:
    mesh = Mesh(("bank-a", "bank-b", "insurer-a"))
    await mesh.start_all()
    yield mesh
    await mesh.close()


async def test_every_member_is_connected_with_every_other_once(trio: Mesh) -> None:
    assert trio.nodes["bank-a"].connected == ("bank-b", "insurer-a")
    assert sorted(trio.handlers["bank-b"].links) == ["+bank-a", "+insurer-a"]
    (first, _) = trio.nodes["insurer-a"].peers()
    assert (first.id, first.connected, first.contracts_hash) == ("bank-a", True, b"c" * 32)
    assert first.connected_since_ms is not None


async def test_messages_arrive_whole_and_in_order(trio: Mesh) -> None:
    sent: list[WireMessage] = [TransactionBatch((bytes([i]) * (i * 2_000),)) for i in range(20)]
    assert all(trio.nodes["bank-a"].send("insurer-a", message) for message in sent)
    heard = trio.handlers["insurer-a"].messages
    await until(lambda: len(heard) == 20)
    assert heard == [("bank-a", message) for message in sent]
    info = next(info for info in trio.nodes["insurer-a"].peers() if info.id == "bank-a")
    assert info.received_bytes > 2_000 * 190


async def test_a_broadcast_reaches_all_and_a_stranger_nobody(trio: Mesh) -> None:
    trio.nodes["insurer-a"].broadcast(IDS)
    for member in ("bank-a", "bank-b"):
        await until(lambda member=member: trio.handlers[member].messages == [("insurer-a", IDS)])  # type: ignore[misc]
    assert not trio.nodes["insurer-a"].send("bank-x", IDS)
    assert not trio.nodes["insurer-a"].send("insurer-a", IDS)


async def test_a_question_gets_its_own_answer(trio: Mesh) -> None:
    def answer(peer: str, message: WireMessage) -> None:
        if isinstance(message, FetchBlocks):  # the later question is answered first
            loop = asyncio.get_running_loop()
            reply = Blocks(message.request, (bytes([message.first]),), 9, 1)
            loop.call_later(0.02 / message.first, trio.nodes["bank-b"].send, peer, reply)

    trio.handlers["bank-b"].react = answer
    asking = [trio.nodes["bank-a"].request("bank-b", FetchBlocks(0, first, first), 5.0) for first in (1, 2, 3)]
    replies = await asyncio.gather(*asking)
    assert [reply.blocks for reply in replies if isinstance(reply, Blocks)] == [(b"\1",), (b"\2",), (b"\3",)]
    assert not trio.handlers["bank-a"].messages


async def test_a_question_without_an_answer_ends(trio: Mesh) -> None:
    node = trio.nodes["bank-a"]
    with pytest.raises(Unavailable) as raised:
        await node.request("bank-b", FetchPayload(0, 1, b"h" * 32), 0.02)
    assert (raised.value.code, raised.value.entry.retryable) == ("peer_timeout", True)
    with pytest.raises(Unavailable, match="peer_gone"):
        await node.request("bank-x", FetchPayload(0, 1, b"h" * 32), 5.0)
    asking = asyncio.create_task(node.request("bank-b", FetchPayload(0, 1, b"h" * 32), 60.0))
    await until(lambda: len(trio.handlers["bank-b"].messages) == 2)
    await trio.nodes["bank-b"].close()
    with pytest.raises(Unavailable, match="peer_gone"):
        await asking


async def test_a_late_or_unasked_answer_is_not_a_message(trio: Mesh) -> None:
    node = trio.nodes["bank-a"]
    trio.nodes["bank-b"].send("bank-a", PayloadReply(77, None))
    await until(lambda: node.refusals().get("late_reply") == 1)
    assert "bank-b" in node.connected
    assert not trio.handlers["bank-a"].messages


async def test_an_answer_of_another_kind_disconnects(trio: Mesh) -> None:
    def answer(peer: str, message: WireMessage) -> None:
        if isinstance(message, FetchBlocks):
            trio.nodes["bank-b"].send(peer, PayloadReply(message.request, None))

    trio.handlers["bank-b"].react = answer
    with pytest.raises(Unavailable, match="peer_gone"):
        await trio.nodes["bank-a"].request("bank-b", FetchBlocks(0, 1, 1), 5.0)
    assert trio.nodes["bank-a"].refusals()["invalid_frame"] == 1


@pytest.mark.parametrize("gone", ["bank-a", "bank-b", "insurer-a"])
async def test_whoever_comes_back_is_connected_again(trio: Mesh, gone: str) -> None:
    others = [member for member in trio.nodes if member != gone]
    await trio.nodes[gone].close()
    await until(lambda: all(gone not in trio.nodes[member].connected for member in others))
    assert all(trio.handlers[member].links[-1] == f"-{gone}" for member in others)
    await trio.start(gone)
    await until(lambda: len(trio.nodes[gone].connected) == 2)
    await until(lambda: all(gone in trio.nodes[member].connected for member in others))


async def test_a_removed_member_is_cut_off_and_comes_back_with_its_new_key(trio: Mesh) -> None:
    node, members = trio.nodes["bank-a"], trio.network.members
    node.set_members(members[:2])
    await until(lambda: node.connected == ("bank-b",))
    await until(lambda: "bank-a" not in trio.nodes["insurer-a"].connected)
    assert "not_a_member" in next(i for i in trio.nodes["insurer-a"].peers() if i.id == "bank-a").last_error
    assert not any(info.id == "insurer-a" for info in node.peers())
    node.set_members(members)
    await until(lambda: "insurer-a" in node.connected)
    rotated = msgspec.structs.replace(members[2], tls_key=SigningKey.generate().public)
    node.set_members((*members[:2], rotated))
    await until(lambda: node.connected == ("bank-b",))


async def test_a_node_with_another_network_file_is_refused_and_both_sides_say_why(trio: Mesh) -> None:
    key = SigningKey.generate()
    joining = MemberConfig("aa-first", "observer", f"127.0.0.1:{free_port()}", b"v" * 32, key.public)
    members = (*trio.network.members, joining)
    for node in trio.nodes.values():
        node.set_members(members)
    changed = msgspec.structs.replace(trio.network, members=members)
    trio.tls_keys["aa-first"] = key
    trio.handlers["aa-first"] = Handler()
    other = await trio.start("aa-first", network=changed, listen=joining.address)
    await until(lambda: other.refusals().get("wrong_network", 0) > 0)
    dialler = trio.nodes["bank-b"]
    await until(lambda: dialler.refusals().get("refused", 0) > 0)
    assert "wrong_network" in next(info for info in dialler.peers() if info.id == "aa-first").last_error
    assert not trio.handlers["aa-first"].links


async def test_a_used_port_is_told(trio: Mesh) -> None:
    address = trio.nodes["bank-a"].address
    with pytest.raises(ConfigError) as raised:
        await trio.start("bank-b", listen=address)
    assert (raised.value.code, address in raised.value.message) == ("port_in_use", True)
    with pytest.raises(ConfigError, match="cannot_listen"):
        await trio.start("bank-b", listen="203.0.113.7:7600")


async def test_a_node_needs_its_own_key() -> None:
    mesh = Mesh(("bank-a", "bank-b"))
    with pytest.raises(ConfigError, match="wrong_key"):
        await mesh.start("bank-a", tls_key=mesh.tls_keys["bank-b"])
    with pytest.raises(ConfigError, match="unknown_member"):
        await mesh.start("bank-a", network=Mesh(("bank-x",)).network)


async def test_closing_leaves_nothing_behind() -> None:
    mesh = Mesh(("bank-a", "bank-b"))
    before = asyncio.all_tasks()
    await mesh.start_all()
    await mesh.close()
    assert asyncio.all_tasks() == before
    assert mesh.handlers["bank-a"].links == ["+bank-b", "-bank-b"]
    await mesh.start_all()  # the ports are free again
    await mesh.close()


def test_it_works_under_uvloop() -> None:
    async def talk() -> None:
        mesh = Mesh(("bank-a", "bank-b", "insurer-a"))

        def answer(peer: str, message: WireMessage) -> None:
            if isinstance(message, FetchBlocks):
                mesh.nodes["bank-b"].send(peer, Blocks(message.request, (b"b" * 1_000_000,), 1, 1))

        mesh.handlers["bank-b"].react = answer
        await mesh.start_all()
        reply = await mesh.nodes["bank-a"].request("bank-b", FetchBlocks(0, 1, 1), 5.0)
        assert isinstance(reply, Blocks)
        await mesh.nodes["bank-a"].close()
        await until(lambda: mesh.nodes["bank-b"].connected == ("insurer-a",))
        await mesh.start("bank-a")
        await until(lambda: len(mesh.nodes["bank-b"].connected) == 2)
        await mesh.close()

    uvloop.run(talk())


def test_the_queue_gives_the_urgent_first_and_keeps_its_bound() -> None:
    queue = SendQueue(4_000)
    for number in range(100):
        assert queue.put(TrafficClass.BULK, bytes([number]) * 100)
    assert queue.size_bytes <= 2_000
    assert queue.dropped == 100 - 12
    accepted = [queue.put(TrafficClass.CONTROL, b"c" * 100) for _ in range(10)]
    assert accepted == [True] * 6 + [False] * 4
    assert queue.put(TrafficClass.CONSENSUS, b"v" * 5_000)  # any size fits into an empty class
    assert not queue.put(TrafficClass.CONSENSUS, b"v")
    assert queue.take(1_000) == b"v" * 5_000
    assert queue.take(250) == b"c" * 200
    assert queue.take(10_000) == b"c" * 400 + b"".join(bytes([number]) * 100 for number in range(88, 100))
    assert not queue
    assert queue.size_bytes == 0


async def test_who_is_not_dialled_dials_itself() -> None:
    mesh = Mesh(("bank-a", "bank-b"), timing=msgspec.structs.replace(QUICK, fallback_first_s=0.05, fallback_s=0.05))
    # bank-b, the higher id, has a wrong address of bank-a in its file.
    first, second = mesh.network.members
    astray = msgspec.structs.replace(first, address=f"127.0.0.1:{free_port()}")
    await mesh.start("bank-b", network=msgspec.structs.replace(mesh.network, members=(astray, second)))
    await mesh.start("bank-a")
    await until(lambda: mesh.nodes["bank-a"].connected == ("bank-b",))
    assert mesh.nodes["bank-b"].connected == ("bank-a",)
    await mesh.close()


async def test_who_comes_back_does_not_wait_to_be_dialled() -> None:
    """Its peers, which saw it go, may be between two attempts."""
    long = {"retry_first_s": 3600.0, "retry_cap_s": 3600.0, "fallback_s": 3600.0}
    patient = msgspec.structs.replace(QUICK, fallback_first_s=0.01, **long)
    mesh = Mesh(("bank-a", "bank-b"), timing=patient)
    await mesh.start("bank-b")
    await until(lambda: mesh.nodes["bank-b"].refusals().get("unreachable") == 1)
    await mesh.start("bank-a")
    await until(lambda: mesh.nodes["bank-a"].connected == ("bank-b",))
    await mesh.close()


async def test_two_that_dial_one_another_keep_one_link() -> None:
    mesh = Mesh(
        ("bank-a", "bank-b"), timing=msgspec.structs.replace(QUICK, fallback_first_s=0.001, fallback_s=0.001)
    )
    await mesh.start_all()
    for _ in range(20):
        for member in ("bank-a", "bank-b"):
            [link] = mesh.nodes[member]._links.values()
            link.abort("closed", "cut by the test")
        await until(lambda: all(len(node.connected) == 1 for node in mesh.nodes.values()))
    await mesh.close()


async def test_another_process_of_a_member_takes_the_place_of_the_one_that_was_linked() -> None:
    mesh = Mesh(("bank-a", "bank-b"))
    await mesh.start_all()
    copy = await mesh.intruder("bank-b", mesh.tls_keys["bank-a"])
    await copy.send(mesh.hello("bank-a", instance=b"another instance"))
    await until(lambda: "-bank-a" in mesh.handlers["bank-b"].links)
    # bank-b dials the address that it knows, and so either process has its turn.
    await until(lambda: mesh.handlers["bank-b"].links == ["+bank-a", "-bank-a", "+bank-a", "-bank-a", "+bank-a"])
    assert mesh.nodes["bank-a"].connected == ("bank-b",)
    copy.close()
    await mesh.close()


async def test_either_tls_key_proves_a_member_while_a_rotation_overlaps(trio: Mesh) -> None:
    members, new = trio.network.members, SigningKey.generate()
    old = members[2].tls_key
    overlapping = msgspec.structs.replace(members[2], tls_key=new.public, former_tls_key=old)
    for node in trio.nodes.values():
        node.set_members((*members[:2], overlapping))
    # Nobody is cut off by it.
    assert trio.handlers["bank-a"].links == ["+bank-b", "+insurer-a"]
    await trio.nodes["insurer-a"].close()
    await until(lambda: all(trio.nodes[name].connected == (other,) for name, other in PAIR))
    # bank-b was away and has not heard of the new key: it knows the node by the former one.
    trio.nodes["bank-b"].set_members(members)
    rotated = await trio.start("insurer-a", further_tls_keys=(new,))
    rotated.set_members((*members[:2], overlapping))
    await until(lambda: len(rotated.connected) == 2)
    assert {certificate_key(link.certificate) for link in trio.nodes["bank-b"]._links.values()} >= {old}
    # Whoever knows the new one is shown that, be it by a link that it dials or one that it takes.
    assert {certificate_key(link.certificate) for link in trio.nodes["bank-a"]._links.values()} >= {new.public}
    ended = msgspec.structs.replace(overlapping, former_tls_key=b"")
    for node in trio.nodes.values():
        node.set_members((*members[:2], ended))

    def proven() -> bool:
        links = [trio.nodes[name]._links.get("insurer-a") for name, _ in PAIR]
        return all(link is not None and certificate_key(link.certificate) == new.public for link in links)

    await until(proven)


async def test_who_was_away_during_a_rotation_is_dialled_with_the_former_key_at_the_next_attempt() -> None:
    """It does not dial back here: it would be shown the key for which it asks."""
    mesh = Mesh(("bank-a", "bank-b"), msgspec.structs.replace(QUICK, fallback_first_s=3600.0, fallback_s=3600.0))
    away, dialler = mesh.network.members
    new = SigningKey.generate()
    overlapping = msgspec.structs.replace(dialler, tls_key=new.public, former_tls_key=dialler.tls_key)
    node = await mesh.start("bank-b", further_tls_keys=(new,))
    node.set_members((away, overlapping))
    peer = await mesh.start("bank-a")
    await until(lambda: node.connected == ("bank-a",))
    assert peer.refusals()["handshake_failed"] >= 1
    assert certificate_key(peer._links["bank-b"].certificate) == dialler.tls_key
    await mesh.close()


async def test_a_dialler_is_shown_the_key_by_which_it_knows_the_node(trio: Mesh) -> None:
    members, new = trio.network.members, SigningKey.generate()
    old = members[0].tls_key
    overlapping = msgspec.structs.replace(members[0], tls_key=new.public, former_tls_key=old)
    await trio.nodes["bank-a"].close()
    trio.nodes["bank-b"].set_members((overlapping, *members[1:]))
    rotated = await trio.start("bank-a", further_tls_keys=(new,))
    rotated.set_members((overlapping, *members[1:]))

    def shown(node: str) -> bytes | None:
        link = trio.nodes[node]._links.get("bank-a")
        return None if link is None else certificate_key(link.certificate)

    await until(lambda: shown("bank-b") is not None and shown("insurer-a") is not None)
    # Whoever knows both keys asks for the new one, whoever was away for the former.
    for node in ("bank-b", "insurer-a"):
        trio.nodes[node]._links["bank-a"].abort("lost", "the cable was pulled")
    await until(lambda: shown("bank-b") == new.public)
    await until(lambda: shown("insurer-a") == old)
