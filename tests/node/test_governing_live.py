"""Members govern a live network by the command line: whole nodes, real links, real keys."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from contracts import CONTRACTS
from node.cli.joining import invitation
from node.cli.main import main
from node.config import (
    MemberConfig,
    NetworkConfig,
    NodeConfig,
    PrincipalConfig,
    dump_network,
    dump_node,
    load_network,
    load_node,
)
from node.keys import SigningKey, certificate_key, read_key_file, read_key_info, write_key_file
from node.runtime import roster
from node.runtime.node import Node
from node.runtime.surroundings import this_machine
from tests.node.live_network import MEMBERS, LiveNetwork, drifting
from tests.node.mesh_kit import free_port

pytestmark = pytest.mark.slow

PASSPHRASE = "correct horse"


class GovernedNetwork(LiveNetwork):
    """Every bank's root has one key; two validators may be left."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        roots = {member: self.key if member == "bank-a" else SigningKey.generate() for member in MEMBERS}
        self.network = msgspec.structs.replace(
            self.network,
            principals=tuple(PrincipalConfig(member, (key.public,), 1) for member, key in roots.items()),
            contracts={**self.network.contracts, "governance": {"validators_min": 2}},
        )
        self._roots = directory / "roots"
        for member, key in roots.items():
            file = self._roots / f"{member}.key"
            write_key_file(file, key, kind="principal", id=member, passphrase=PASSPHRASE)

    async def run(self, member: str, *arguments: str) -> int:
        """The exit code of a command line at the member's node."""
        words = [*arguments, "--json", "--node", *self.urls(member)]
        return await asyncio.to_thread(main, words)

    async def start_directory(self, directory: Path) -> None:
        """The node of a directory runs, as `hansa run` would start it."""
        config = load_node(directory / "node.toml")
        network, member = load_network(config.network_file), config.member
        keys = [
            read_key_file(config.keys_dir / f"{kind}.key", PASSPHRASE, id=member)[1] for kind in ("voting", "tls")
        ]
        running = asyncio.Event()

        async def run() -> int:
            while True:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("node.runtime.node.CONTRACTS", (*CONTRACTS, drifting()))
                    node = Node(config, network, this_machine(config, network, keys[0], keys[1]))
                self.nodes[member] = node
                code = await node.run(running.set)
                if code or not node.begins_anew:
                    return code

        self._runs[member] = asyncio.create_task(run())
        await running.wait()

    async def act(self, member: str, *arguments: str) -> int:
        """The exit code of a command line that signs as the member's root."""
        # A node that is a block behind the one where a change was proposed does not know the proposal yet.
        await self.until(lambda: self.height(member) >= max(map(self.height, self.nodes)))
        return await self.run(member, *arguments, "--as", member, "--key", str(self._roots / f"{member}.key"))


@pytest_asyncio.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GovernedNetwork]:
    monkeypatch.setenv("HANSA_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr(roster, "FAREWELL_MS", 300)
    network = GovernedNetwork(tmp_path)
    await network.start_all()
    yield network
    await network.stop()


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """The last command's document; the nodes of this process may have logged before it and after."""
    out = capsys.readouterr().out
    start = 0 if out.startswith("{") else out.index("\n{") + 1
    return json.JSONDecoder().raw_decode(out[start:])[0]


async def test_a_member_is_removed_by_votes_and_the_rest_refuse_to_fall_below_a_quorum(
    live: GovernedNetwork, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the command shows of a history does not end where one answer does.
    monkeypatch.setattr("contracts.governance.HISTORY_MAX", 2)
    monkeypatch.setattr("node.cli.paging.PAGE", 2)
    assert await live.act("bank-a", "propose", "remove_member", "bank-d", "--reason", "merged") == 0
    capsys.readouterr()
    assert await live.act("bank-a", "vote", "1", "yes") == 1
    assert "vote_unchanged" in capsys.readouterr().err
    assert await live.act("bank-b", "vote", "1", "yes") == 0
    capsys.readouterr()
    assert await live.run("bank-c", "proposals") == 0
    [row] = printed(capsys)["proposals"]
    assert (row["yes"], row["proposal"]["status"]) == (["bank-a", "bank-b"], "open")
    assert await live.act("bank-c", "vote", "1", "yes") == 0
    # From here on no person does anything: the nodes say that they run, and the change takes effect.
    rest = MEMBERS[:3]
    await live.until(lambda: all(live.nodes[name]._chain.head.members.n == 3 for name in MEMBERS))
    await live.until(lambda: all("bank-d" not in live.nodes[name]._peers.connected for name in rest))
    await live.until(lambda: not live.nodes["bank-d"]._peers.connected)
    capsys.readouterr()
    assert await live.run("bank-a", "proposals", "1") == 0
    view = printed(capsys)
    assert view["proposal"]["status"] == "effective"
    assert (view["proposal"]["before"]["standing"], view["proposal"]["after"]["standing"]) == ("active", "removed")
    assert [step["what"] for step in view["history"]][:3] == ["proposed", "yes", "yes"]
    assert [step["what"] for step in view["history"]][-1] == "effective"
    # The rest goes on, and the removed member's node says what it is and answers reads.
    async with live.client("bank-a") as client:
        assert (await client.submit_and_wait(live.add("after", 1))).ok
    async with live.client("bank-d") as client:
        status = await client.status()
        assert (status.standing, status.ready) == ("removed", False)
        assert not any(peer.connected for peer in status.peers)
        assert "no member any more" in status.reasons[0]
        why = await client.why()
        assert "no member any more" in " ".join(why.sentences)
        assert (await client.query("membership.member", {"member": "bank-d"})).value["standing"] == "removed"

    def votes_at(node: str, member: str) -> bool:
        return any(item.votes for item in live.nodes[node]._health.why().members if item.id == member)

    # A vote that needs a quorum of who runs: with bank-c down, suspending bank-b would leave one of two.
    await live.stop("bank-c")
    await live.until(lambda: not votes_at("bank-a", "bank-c"))
    capsys.readouterr()
    assert await live.act("bank-a", "propose", "suspend_member", "bank-b") == 1
    refusal = printed(capsys)["error"]
    assert refusal["code"] == "change_stops_network"
    assert "after it 1 of 2 validators would run (bank-a) and 2 must agree" in refusal["message"]
    assert await live.run("bank-a", "propose", "suspend_member", "bank-b", "--dry-run") == 1


async def test_a_voting_key_changes_at_one_height_and_survives_a_restart(
    live: GovernedNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    new = SigningKey.generate()
    # The operator of bank-b made a key and restarted its node, which has both at hand now.
    await live.stop("bank-b")
    live.further["bank-b"] = (new,)
    await live.start("bank-b")
    await live.until(lambda: len(live.nodes["bank-b"]._peers.connected) == 3)
    change = ("propose", "rotate_voting_key", "bank-b", "--voting-key", new.public.hex(), "--anyway")
    capsys.readouterr()
    assert await live.act("bank-a", *change) == 1
    # Programs get a document of what is refused at the node, too.
    assert printed(capsys)["receipts"][0]["code"] == "not_its_own_key"
    assert await live.act("bank-b", *change) == 0
    for member in ("bank-a", "bank-c"):
        assert await live.act(member, "vote", "1", "yes", "--anyway") == 0
    await live.until(lambda: all(node._chain.head.members.key(1) == new.public for node in live.nodes.values()))
    await live.stop("bank-b")
    await live.start("bank-b")
    # Three of four decide: without bank-d, the vote under the new key is needed.
    await live.stop("bank-d")
    async with live.client("bank-b") as client:
        assert (await client.submit_and_wait(live.add("after", 1))).ok
    signers = live.nodes["bank-b"]._chain.head.certificate
    assert signers is not None
    assert 1 in [index for index, _ in signers.signatures]


def test_a_rotation_begins_with_a_key_beside_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANSA_PASSPHRASE", PASSPHRASE)
    keys = tmp_path / "keys"
    assert main(["init", "--member", "bank-b", "--dir", str(tmp_path)]) == 0
    before = {file.name for file in keys.iterdir()}
    network_file = tmp_path / "agreed.toml"
    found = {info.kind: info for info in (read_key_info(file) for file in keys.glob("*.key"))}
    member = MemberConfig(
        "bank-b", "validator", "127.0.0.1:7601", found["voting"].public_key, found["tls"].public_key
    )
    network_file.write_text(dump_network(NetworkConfig("alone", (member,))))
    assert main(["init", "--member", "bank-b", "--dir", str(tmp_path), "--network", str(network_file)]) == 0
    capsys.readouterr()
    assert main(["keys", "rotate", "--dir", str(tmp_path), "--json"]) == 0
    made = printed(capsys)
    assert {file.name for file in keys.glob("*.key")} - before == {f"voting-{made['public_key'][:16]}.key"}
    info, key = read_key_file(Path(made["file"]), PASSPHRASE, kind="voting", id="bank-b")
    assert (info.public_key, key.public.hex()) == (key.public, made["public_key"])


async def test_a_tls_key_rotates_and_a_restart_in_the_overlap_goes_well(live: GovernedNetwork) -> None:
    new = SigningKey.generate()
    # The operator of bank-b made a key and restarted its node, which has both at hand now.
    await live.stop("bank-b")
    live.further_tls["bank-b"] = (new,)
    await live.start("bank-b")
    await live.until(lambda: len(live.nodes["bank-b"]._peers.connected) == 3)
    change = ("propose", "rotate_tls_key", "bank-b", "--tls-key", new.public.hex(), "--overlap", "6s", "--anyway")
    assert await live.act("bank-b", *change) == 0
    for member in ("bank-a", "bank-c"):
        assert await live.act(member, "vote", "1", "yes", "--anyway") == 0

    def known(node: str) -> MemberConfig:
        return next(item for item in live.nodes[node]._governing.roster.members if item.id == "bank-b")

    await live.until(lambda: all(known(node).tls_key == new.public for node in MEMBERS))
    await live.stop("bank-b")
    await live.start("bank-b")
    await live.until(lambda: len(live.nodes["bank-b"]._peers.connected) == 3)
    await live.until(lambda: all(known(node).former_tls_key == b"" for node in MEMBERS))

    def shows_the_new_one(node: str) -> bool:
        link = live.nodes[node]._peers._links.get("bank-b")  # type: ignore[attr-defined]
        return link is not None and certificate_key(link.certificate) == new.public

    await live.until(lambda: all(shows_the_new_one(node) for node in MEMBERS if node != "bank-b"))
    # A file that is gone at a later start is told, as long as the former key still links and after.
    await live.stop("bank-b")
    live.further_tls["bank-b"] = ()
    await live.start("bank-b")
    told = live.nodes["bank-b"]._health.why()
    assert ("bank-b", "tls_key_missing") in [(item.member, item.cause) for item in told.culprits]
    await live.stop("bank-b")
    live.further_tls["bank-b"] = (new,)
    await live.start("bank-b")
    await live.until(lambda: len(live.nodes["bank-b"]._peers.connected) == 3)
    # Three of four decide: without bank-d, the vote that comes over the new links is needed.
    await live.stop("bank-d")
    async with live.client("bank-b") as client:
        assert (await client.submit_and_wait(live.add("after", 1))).ok


async def test_a_newcomer_joins_by_its_invitation_and_its_vote_counts(
    live: GovernedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("contracts.CONTRACTS", (*CONTRACTS, drifting()))
    home, invited = tmp_path / "bank-z", tmp_path / "invitation.toml"
    agreed = tmp_path / "agreed.toml"
    agreed.write_text(dump_network(live.network))
    node = NodeConfig("bank-a", Path("data"), Path("keys"), agreed, "127.0.0.1:1", "127.0.0.1:2")
    (tmp_path / "node.toml").write_text(dump_node(node))
    async with live.client("bank-a") as client:
        assert (await client.submit_and_wait(live.add("before", 1))).ok
    capsys.readouterr()
    words = ["invite", "--node", *live.urls("bank-a"), "--dir", str(tmp_path)]
    assert await asyncio.to_thread(main, words) == 0
    out = capsys.readouterr().out
    invited.write_text("".join(line for line in out.splitlines(True) if not line.startswith("20")))
    assert load_network(invited).as_of > 0
    places = ("--listen", f"127.0.0.1:{free_port()}", "--api", f"127.0.0.1:{free_port()}", "--dir", str(home))
    joining = ["init", "--member", "bank-z", "--join", str(invited), *places]
    assert await asyncio.to_thread(main, joining) == 0
    request = ("--request", str(home / "request.json"))
    # Its node may run before anybody voted: the others refuse it.
    await live.start_directory(home)
    await live.until(lambda: live.nodes["bank-z"]._peers.refusals().get("lost", 0) > 0)
    assert not live.nodes["bank-z"]._peers.connected
    assert [item.cause for item in live.nodes["bank-z"]._health.why().culprits] == ["not_admitted"]
    assert await live.act("bank-a", "propose", "add_member", "bank-y", *request) == 2
    assert await live.act("bank-a", "propose", "add_member", "bank-z", *request, "--dry-run") == 0
    assert await live.act("bank-a", "propose", "add_member", "bank-z", *request) == 0
    for member in ("bank-b", "bank-c"):
        assert await live.act(member, "vote", "1", "yes") == 0
    await live.until(lambda: all(node._chain.head.members.n == 5 for node in live.nodes.values()))
    # Of five four decide: without bank-d, the newcomer's vote is needed.
    await live.stop("bank-d")
    async with live.client("bank-a") as client:
        assert (await client.submit_and_wait(live.add("after", 1))).ok
    await live.until(lambda: live.nodes["bank-z"]._service.status().voting)
    status = live.nodes["bank-z"]._service.status()
    assert (status.role, status.standing) == ("validator", "active")
    # And again after a restart.
    await live.stop("bank-z")
    await live.start_directory(home)
    async with live.client("bank-b") as client:
        assert (await client.submit_and_wait(live.add("again", 1))).ok


def test_an_invitation_names_whom_the_definition_does_not() -> None:
    founders = tuple(
        MemberConfig(name, "validator", f"{name}:1", bytes([9, place]) * 16, bytes([8, place]) * 16)
        for place, name in enumerate(MEMBERS)
    )
    network = NetworkConfig("trial", founders)

    def row(member: MemberConfig, standing: str = "active", former: str = "") -> dict[str, Any]:
        keys = {"voting_key": member.voting_key.hex(), "tls_key": member.tls_key.hex(), "former_tls_key": former}
        return {"id": member.id, "role": member.role, "standing": standing, "address": "", **keys}

    rotated = msgspec.structs.replace(founders[1], tls_key=b"t" * 32)
    later = MemberConfig("bank-z", "observer", "z:1", b"v" * 32, b"w" * 32)
    rows = [row(founders[0]), row(rotated, former="66" * 32), row(founders[2], "removed"), row(later)]
    addresses = {"bank-b": "moved:1", "bank-z": "z:1"}
    made = invitation(network, rows, addresses, 12)
    moved = msgspec.structs.replace(rotated, address="moved:1", former_tls_key=b"f" * 32)
    assert made.peers == (moved, later)
    assert (made.as_of, made.genesis_hash) == (12, network.genesis_hash)
