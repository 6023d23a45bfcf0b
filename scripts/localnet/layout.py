"""Where the files of a test network lie, and what `testnet.json` says about its processes.

DIR/network.toml, DIR/passphrase, DIR/testnet.json, and for each member DIR/<member>/ with data/, keys/,
node.toml and node.log. A network whose nodes reach each other through a proxy has DIR/proxy.json besides.
"""

import json
import os
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
"""The repository."""
FIRST_MEMBERS = ("bank-a", "bank-b", "insurer-a", "insurer-b")
API_PORT_OFFSET = 100
"""Member i listens for peers on base port + i and for HTTP on base port + 100 + i."""
MEMBERS_MAX = 16


class TestnetError(Exception):
    """What an operator did or has to mend: one sentence, and the exit code of DESIGN §8."""

    __test__ = False

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Member(msgspec.Struct, frozen=True):
    """One node of the test network. `pid` and `started_ticks` name its last process; None: never started."""

    id: str
    listen: str
    api: str
    data_dir: str
    pid: int | None = None
    started_ticks: int | None = None


class Process(msgspec.Struct, frozen=True):
    """A process that this test network started."""

    pid: int
    started_ticks: int


class Network(msgspec.Struct, frozen=True):
    """What `testnet.json` holds. `proxy` is the last process between the nodes, where there is one."""

    network: str
    members: tuple[Member, ...]
    proxy: Process | None = None

    def member(self, member_id: str) -> Member:
        """The member of that id; raise TestnetError naming those there are."""
        for member in self.members:
            if member.id == member_id:
                return member
        known = ", ".join(member.id for member in self.members)
        raise TestnetError(f"{member_id!r} is not a node of this test network; its nodes are: {known}")


class Layout:
    """The paths of one test network directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.network_file = self.directory / "network.toml"
        self.passphrase_file = self.directory / "passphrase"
        self.testnet_file = self.directory / "testnet.json"
        self.proxy_file = self.directory / "proxy.json"
        self.proxy_log_file = self.directory / "proxy.log"

    def member_dir(self, member_id: str) -> Path:
        return self.directory / member_id

    def node_file(self, member_id: str) -> Path:
        return self.member_dir(member_id) / "node.toml"

    def log_file(self, member_id: str) -> Path:
        return self.member_dir(member_id) / "node.log"

    def exists(self) -> bool:
        """Whether a test network was founded here."""
        return self.testnet_file.exists()

    def load(self) -> Network:
        """What `testnet.json` says; raise TestnetError when there is none or it is broken."""
        try:
            data = self.testnet_file.read_bytes()
            return msgspec.json.decode(data, type=Network)
        except FileNotFoundError:
            raise TestnetError(
                f"{self.directory} holds no test network; start one with: scripts/testnet up --dir {self.directory}"
            ) from None
        except OSError as error:
            raise TestnetError(f"{self.testnet_file}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise TestnetError(
                f"{self.testnet_file} is damaged ({error}); delete {self.directory} and start again"
            ) from error

    def save(self, network: Network) -> None:
        """`testnet.json` holds `network`, whole or not at all."""
        text = json.dumps(msgspec.to_builtins(network), indent=2) + "\n"
        temporary = self.testnet_file.with_suffix(f".{os.getpid()}.new")
        temporary.write_text(text)
        temporary.replace(self.testnet_file)


def member_names(count: int) -> list[str]:
    """The names of `count` members: two banks and two insurers, then more banks."""
    if not 1 <= count <= MEMBERS_MAX:
        raise TestnetError(f"a test network has 1 to {MEMBERS_MAX} nodes, not {count}")
    more = [f"bank-{chr(ord('c') + index)}" for index in range(max(0, count - len(FIRST_MEMBERS)))]
    return [*FIRST_MEMBERS, *more][:count]


def addresses(index: int, base_port: int) -> tuple[str, str]:
    """The peer and the HTTP address ("host:port") of the member at `index`."""
    return f"127.0.0.1:{base_port + index}", f"127.0.0.1:{base_port + API_PORT_OFFSET + index}"
