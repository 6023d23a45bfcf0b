"""What `scripts/testnet` says when it cannot do what was asked; nothing is started here, so these are quick."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from node.config import load_network
from scripts.localnet import processes, testnet
from scripts.localnet.founding import found
from scripts.localnet.layout import Layout, Member, Network, TestnetError, addresses, member_names
from scripts.localnet.nodes import Nodes
from scripts.localnet.testnet import cli, main
from tests.e2e.conftest import Testnet
from tests.node.memory_node import MemoryNode


def test_a_used_port_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        done = Testnet(tmp_path / "net", port).run("up", "--base-port", str(port), "--detach", ok=False)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "another --base-port" in done.stderr
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("start",), ("stop", "bank-a"), ("kill",), ("wipe", "bank-a"), ("down",), ("load",), ("logs",)],
)
def test_without_a_network_every_command_says_how_to_make_one(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/testnet", *arguments, "--dir", str(tmp_path)])
    assert main() == 2
    said = capsys.readouterr().err
    assert "holds no test network; start one with: scripts/testnet up" in said
    assert len(said.splitlines()) == 1


def test_a_foreign_directory_is_left_alone(tmp_path: Path, base_port: int) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(TestnetError, match="is not empty"):
        found(Layout(tmp_path), 1, base_port)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_names_and_addresses() -> None:
    assert member_names(4) == ["bank-a", "bank-b", "insurer-a", "insurer-b"]
    assert member_names(1) == ["bank-a"]
    assert member_names(7)[4:] == ["bank-c", "bank-d", "bank-e"]
    assert len(set(member_names(16))) == 16
    assert addresses(2, 7600) == ("127.0.0.1:7602", "127.0.0.1:7702")
    for count in (0, 17):
        with pytest.raises(TestnetError, match="1 to 16 nodes"):
            member_names(count)


def test_a_network_that_is_founded_twice_keeps_its_keys(tmp_path: Path, base_port: int) -> None:
    layout = Layout(tmp_path / "net")
    first = found(layout, 1, base_port)
    layout.testnet_file.unlink()  # as if it had been interrupted at the very end
    assert found(layout, 1, base_port) == first
    assert layout.passphrase_file.stat().st_mode & 0o777 == 0o600
    for name in ("node.toml", "network.toml", "keys/voting.key", "keys/tls.key", "keys/bank-a.key", "data"):
        assert (layout.member_dir("bank-a") / name).exists()


def test_a_damaged_testnet_file_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.testnet_file.write_text('{"network": 1}')
    with pytest.raises(TestnetError, match="damaged"):
        layout.load()


def test_an_unknown_node_is_named_with_those_there_are(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    members = tuple(Member(name, "127.0.0.1:1", "http://127.0.0.1:2", "d") for name in ("bank-a", "bank-b"))
    layout.save(Network("n-0", members))
    done = Testnet(tmp_path, 0).run("kill", "bank-x", ok=False)
    assert done.returncode == 2
    assert "'bank-x' is not a node of this test network; its nodes are: bank-a, bank-b" in done.stderr
    rows = json.loads(Testnet(tmp_path, 0).run("status", "--json").stdout)["members"]
    assert [(row["id"], row["alive"], row["height"]) for row in rows] == [
        ("bank-a", False, None),
        ("bank-b", False, None),
    ]


def test_a_process_that_took_over_the_pid_is_not_killed(tmp_path: Path) -> None:
    pid, ticks = processes.start(["/bin/sleep", "60"], os.environ, tmp_path / "log")
    layout = Layout(tmp_path)
    layout.save(Network("n-0", (Member("bank-a", "127.0.0.1:1", "http://127.0.0.1:2", "d", pid, ticks + 1),)))
    nodes = Nodes(layout)
    nodes.end(nodes.network.members, kill=True)
    assert processes.is_alive(pid, ticks)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[Layout]:
    """A network of one node, whose process is one that never answers."""
    pid, ticks = processes.start(["/bin/sleep", "60"], os.environ, tmp_path / "log")
    layout = Layout(tmp_path)
    layout.save(Network("n-0", (Member("bank-a", "127.0.0.1:1", "http://127.0.0.1:2", "d", pid, ticks),)))
    yield layout
    processes.end(pid, ticks, kill=True)


def test_what_was_done_to_a_node_is_said_in_one_line(one_process: Layout) -> None:
    def said(command: str) -> str:
        done = CliRunner().invoke(cli, [command, "bank-a", "--dir", str(one_process.directory)])
        assert done.exit_code == 0, done.output
        return done.output

    assert said("pause") == "bank-a: paused\n"
    assert said("resume") == "bank-a: goes on\n"
    assert said("start") == "bank-a: runs already\n"
    assert said("stop") == "bank-a: stopped\n"
    for command in ("stop", "kill", "pause", "resume"):
        assert said(command) == "bank-a: was not running\n"


def test_a_node_that_was_started_and_does_not_answer_is_named(one_process: Layout) -> None:
    nodes = Nodes(one_process)
    with pytest.raises(TestnetError, match=r"bank-a runs .* and does not answer after 0 s"):
        nodes.wait_answers(nodes.network.members, timeout_s=0.2)
    nodes.end(nodes.network.members, kill=True)
    with pytest.raises(TestnetError, match="bank-a ended: it wrote nothing"):
        nodes.wait_answers(nodes.network.members)


def test_a_mistake_in_a_configuration_is_told_as_one(tmp_path: Path, base_port: int) -> None:
    """`start` let the node end with it and called that a failure of disk or data."""
    layout = Layout(tmp_path / "net")
    found(layout, 1, base_port)
    node_file = layout.node_file("bank-a")
    node_file.write_text(node_file.read_text() + "\nretention_blocs = 3\n")
    done = Testnet(layout.directory, 0).run("start", ok=False)
    assert done.returncode == 2, done.stderr
    assert "retention_blocs" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not layout.log_file("bank-a").exists()


@pytest.mark.parametrize(("voting", "refused"), [((True, True, True), False), ((True, False, True), True)])
def test_a_member_is_not_wiped_while_another_abstains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voting: tuple[bool, ...], refused: bool
) -> None:
    """Two without memory of four: no block was ever made again."""
    layout = Layout(tmp_path)
    names = ("bank-a", "bank-b", "insurer-a", "insurer-b")
    layout.save(Network("n-0", tuple(Member(name, "127.0.0.1:1", "http://127.0.0.1:2", "d") for name in names)))
    status = MemoryNode().status()
    votes = dict(zip(names[1:], voting, strict=True))
    wiped: list[str] = []

    def wipe(_: Nodes, member: Member) -> Member:
        wiped.append(member.id)
        return member

    monkeypatch.setattr(
        testnet, "node_status", lambda member: msgspec.structs.replace(status, voting=votes[member.id])
    )
    monkeypatch.setattr(Nodes, "wipe", wipe)
    monkeypatch.setattr(Nodes, "wait_answers", lambda *_: None)
    done = CliRunner().invoke(cli, ["wipe", "bank-a", "--dir", str(tmp_path)])
    assert (done.exit_code != 0, wiped) == (refused, [] if refused else ["bank-a"])
    if refused:
        assert isinstance(done.exception, TestnetError)
        assert "insurer-a abstains from voting; with bank-a wiped too" in str(done.exception)
        assert CliRunner().invoke(cli, ["wipe", "bank-a", "--force", "--dir", str(tmp_path)]).exit_code == 0
        assert wiped == ["bank-a"]


def test_links_of_a_network_without_a_proxy_say_how_to_found_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.save(Network("n-0", (Member("bank-a", "127.0.0.1:1", "http://127.0.0.1:2", "d"),)))
    done = Testnet(tmp_path, 0).run("link", "bank-a", "--cut", ok=False)
    assert done.returncode == 2
    assert "scripts/testnet up --proxied" in done.stderr


@pytest.mark.slow
def test_whoever_dials_is_led_through_the_proxy(tmp_path: Path, base_port: int) -> None:
    layout = Layout(tmp_path / "net")
    found(layout, 3, base_port, proxied=True)
    ids = ["bank-a", "bank-b", "insurer-a"]
    seen = {name: load_network(layout.member_dir(name) / "network.toml") for name in ids}
    assert len({network.genesis_hash for network in seen.values()}) == 1
    proxied = {
        (name, member.id)
        for name, network in seen.items()
        for member in network.members
        if member.address != load_network(layout.network_file).member(member.id).address
    }
    assert proxied == {(dialler, listener) for dialler in ids for listener in ids if dialler != listener}
