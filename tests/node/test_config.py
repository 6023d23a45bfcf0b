"""network.toml and node.toml: what is read is what was meant, and every mistake is one clear line."""

import re
from pathlib import Path

import msgspec
import pytest

from node.config import (
    Limits,
    MemberConfig,
    NetworkConfig,
    NodeConfig,
    Parameters,
    PrincipalConfig,
    check_network,
    dump_network,
    dump_node,
    load_network,
    load_node,
    split_address,
)
from node.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "network.toml"


def hex_key(number: int) -> str:
    return number.to_bytes(32, "big").hex()


def network_text() -> str:
    lines = ['[network]\nname = "trial"\n']
    for position, member in enumerate(("bank-a", "bank-b")):
        lines.append(
            f'[[members]]\nid = "{member}"\nrole = "validator"\naddress = "host-{position}:7600"\n'
            f'voting_key = "{hex_key(10 + position)}"\ntls_key = "{hex_key(20 + position)}"\n'
        )
    lines.append(
        f'[[principals]]\nid = "bank-a/treasury"\nkeys = ["{hex_key(30)}", "{hex_key(31)}"]\nthreshold = 2\n'
    )
    lines.append("[parameters]\nrotation_heights = 7\n")
    lines.append('[contracts.settlement]\ncurrencies = [{ code = "USD" }]\n')
    return "\n".join(lines)


def load(directory: Path, text: str) -> NetworkConfig:
    path = directory / "network.toml"
    path.write_text(text)
    return load_network(path)


def failure(directory: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        load(directory, text)
    assert "\n" not in str(raised.value)
    assert str(directory / "network.toml") in raised.value.message
    return raised.value


def test_the_sample_is_a_working_network() -> None:
    network = load_network(SAMPLE)
    assert [member.id for member in network.members] == ["bank-a", "bank-b", "insurer-a", "insurer-b"]
    assert (network.validators.n, network.validators.f, network.validators.quorum) == (4, 1, 3)
    assert network.parameters == Parameters()
    assert re.fullmatch(r"sample-[0-9a-f]{12}", network.network_id)
    assert network.network_id.endswith(network.genesis_hash.hex()[:12])


def test_a_network_is_read_as_it_stands(tmp_path: Path) -> None:
    network = load(tmp_path, network_text())
    assert network.name == "trial"
    assert network.members[1] == MemberConfig(
        "bank-b", "validator", "host-1:7600", bytes.fromhex(hex_key(11)), bytes.fromhex(hex_key(21))
    )
    assert network.principals == (
        PrincipalConfig("bank-a/treasury", (bytes.fromhex(hex_key(30)), bytes.fromhex(hex_key(31))), 2),
    )
    assert network.parameters.rotation_heights == 7
    assert network.contracts == {"settlement": {"currencies": [{"code": "USD"}]}}


def test_membership_is_told_members_and_principals(tmp_path: Path) -> None:
    arguments = load(tmp_path, network_text()).genesis_arguments
    assert [member["id"] for member in arguments["membership"]["members"]] == ["bank-a", "bank-b"]
    assert arguments["membership"]["principals"][0]["threshold"] == 2
    assert "settlement" in arguments


def test_what_is_written_is_read_back_alike(tmp_path: Path) -> None:
    network = load(tmp_path, network_text())
    odd = msgspec.structs.replace(
        network, contracts={"settlement": {"a key": ['quote " and \\ and \x7f ü 🜚', True, -3, {"x": []}]}}
    )
    again = load(tmp_path, dump_network(odd))
    assert again == odd
    assert again.genesis_hash == odd.genesis_hash


def test_addresses_and_the_order_of_principals_are_not_genesis(tmp_path: Path) -> None:
    network = load(tmp_path, network_text())
    moved = tuple(
        msgspec.structs.replace(member, address=f"[::1]:{member.id[-1:] == 'a'}") for member in network.members
    )
    assert msgspec.structs.replace(network, members=moved).genesis_hash == network.genesis_hash
    second = PrincipalConfig("bank-b", (b"k" * 32,), 1)
    forth = msgspec.structs.replace(network, principals=(*network.principals, second))
    back = msgspec.structs.replace(network, principals=(second, *network.principals))
    assert forth.genesis_hash == back.genesis_hash != network.genesis_hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "trial"', 'name = "other"'),
        ("rotation_heights = 7", "rotation_heights = 8"),
        ("threshold = 2", "threshold = 1"),
        (hex_key(10), hex_key(99)),
        (hex_key(20), hex_key(99)),
        ('role = "validator"', 'role = "observer"'),
        ('code = "USD"', 'code = "AUD"'),
    ],
)
def test_everything_else_is_genesis(tmp_path: Path, old: str, new: str) -> None:
    text = network_text()
    assert load(tmp_path, text).genesis_hash != load(tmp_path, text.replace(old, new, 1)).genesis_hash


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ('name = "trial"', "", "config_invalid", r"network\.name is missing; add it"),
        ('name = "trial"', 'name = "Trial!"', "config_invalid", r"network\.name 'Trial!' is no network name"),
        ("[network]", "[network", "config_syntax", r"line 1"),
        ("threshold = 2", "threshold = = 2", "config_syntax", r"line \d+"),
        ("rotation_heights = 7", "rotation_height = 7", "config_invalid", r"did you mean rotation_heights\?"),
        ("rotation_heights = 7", "zzz = 7", "config_invalid", r"parameters\.zzz is not a known key; remove it"),
        (
            "rotation_heights = 7",
            'rotation_heights = "7"',
            "config_invalid",
            r"parameters\.rotation_heights is wrong",
        ),
        ("rotation_heights = 7", "rotation_heights = true", "config_invalid", r"parameters\.rotation_heights"),
        ("rotation_heights = 7", "rotation_heights = 0", "config_invalid", r"parameters\.rotation_heights .*>= 1"),
        (
            "rotation_heights = 7",
            "state_tree_bits = 6",
            "config_invalid",
            r"parameters\.state_tree_bits .*multiple",
        ),
        (
            "rotation_heights = 7",
            "timeout_cap_ms = 1000",
            "config_invalid",
            r"timeout_cap_ms is below base_timeout_ms",
        ),
        (
            "rotation_heights = 7",
            "status_interval_ms = 1500",
            "config_invalid",
            r"status_interval_ms is more than half",
        ),
        ("rotation_heights = 7", "block_bytes_max = 1000", "config_invalid", r"block_bytes_max"),
        (
            'id = "bank-b"',
            'id = "bank-a"',
            "config_invalid",
            r"members\[1\]\.id repeats members\[0\]\.id \(bank-a\)",
        ),
        ('id = "bank-b"', 'id = "Bank B"', "config_invalid", r"members\[1\]\.id 'Bank B' is no member id"),
        ("host-1:7600", "HOST-0:7600", "config_invalid", r"members\[1\]\.address repeats members\[0\]\.address"),
        ("host-1:7600", "host-1", "config_invalid", r"members\[1\]\.address 'host-1' has no host"),
        ("host-1:7600", "host-1:70000", "config_invalid", r"has no port between 0 and 65535"),
        ("host-1:7600", "host-1:0", "config_invalid", r"has no port between 1 and 65535"),
        (hex_key(11), hex_key(10), "config_invalid", r"members\[1\]\.voting_key repeats members\[0\]\.voting_key"),
        (hex_key(21), hex_key(11), "config_invalid", r"members\[1\]\.tls_key repeats members\[1\]\.voting_key"),
        (hex_key(11), "xyz", "config_invalid", r"members\[1\]\.voting_key is not a public key; write 64"),
        (hex_key(31), hex_key(31)[:-2], "config_invalid", r"principals\[0\]\.keys\[1\] is not a public key"),
        ('role = "validator"', 'role = "boss"', "config_invalid", r"members\[0\]\.role is wrong: .*'boss'"),
        ("threshold = 2", "threshold = 3", "config_invalid", r"threshold is 3, but bank-a/treasury has 2 keys"),
        ("threshold = 2", "threshold = 0", "config_invalid", r"threshold is 0"),
        ("bank-a/treasury", "banka/treasury", "config_invalid", r"belongs to no member; did you mean bank-a\?"),
        ("bank-a/treasury", "bank-a/", "config_invalid", r"is no principal"),
        (hex_key(31), hex_key(30), "config_invalid", r"principals\[0\]\.keys\[1\] repeats a key"),
        (
            "threshold = 2",
            "thresold = 2",
            "config_invalid",
            r"principals\[0\]\.thresold .*did you mean threshold\?",
        ),
        (f'tls_key = "{hex_key(21)}"', "", "config_invalid", r"members\[1\]\.tls_key is missing; add it"),
        ("[[principals]]", "[principals]", "config_invalid", r"principals is wrong: expected `array`"),
        (hex_key(31), hex_key(21), "config_invalid", r"is a node key of bank-b"),
        ("[contracts.settlement]", "[contracts.membership]", "config_invalid", r"contracts\.membership is derived"),
        (
            'code = "USD"',
            "code = 1.5",
            "config_invalid",
            r"contracts\.settlement holds a value without canonical form",
        ),
        ('code = "USD"', "code = 2020-01-01", "config_invalid", r"contracts\.settlement"),
        ("[network]", "[other]\n[network]", "config_invalid", r"other is not a known key"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, code: str, said: str) -> None:
    text = network_text()
    assert old in text
    error = failure(tmp_path, text.replace(old, new, 1))
    assert error.code == code
    assert re.search(said, error.message), error.message


def test_without_validators_nobody_could_decide(tmp_path: Path) -> None:
    error = failure(tmp_path, network_text().replace('"validator"', '"observer"'))
    assert "has 0 validators" in error.message
    no_members = re.sub(r"\[\[members\]\].*?(?=\[\[p)", "", network_text(), flags=re.DOTALL)
    assert "members is missing" in failure(tmp_path, no_members).message
    assert "members is empty" in failure(tmp_path, "members = []\n" + no_members).message


def test_members_do_not_share_a_signing_key(tmp_path: Path) -> None:
    text = network_text() + f'\n[[principals]]\nid = "bank-b"\nkeys = ["{hex_key(30)}"]\n'
    assert "also signs for bank-a" in failure(tmp_path, text).message
    assert load(tmp_path, text.replace('"bank-b"\nkeys', '"bank-a"\nkeys')).principals[1].id == "bank-a"


def test_a_network_made_in_memory_is_judged_alike() -> None:
    with pytest.raises(ConfigError, match="members is empty"):
        check_network(NetworkConfig("trial", ()))
    member = MemberConfig("bank-a", "validator", "h:1", b"v" * 31, b"t" * 32)
    with pytest.raises(ConfigError, match="has 31 bytes"):
        dump_network(NetworkConfig("trial", (member,)))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError) as raised:
            load_network(path)
        assert raised.value.code == "config_unreadable"
        assert str(path) in raised.value.message
    (tmp_path / "latin.toml").write_bytes(b'[network]\nname = "\xff"\n')
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(at line 2"):
        load_network(tmp_path / "latin.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="config_syntax"):
        load_network(tmp_path / "deep.toml")


def test_an_unknown_member_is_told_who_is_known(tmp_path: Path) -> None:
    network = load(tmp_path, network_text())
    assert network.member("bank-b").id == "bank-b"
    with pytest.raises(ConfigError, match="members are: bank-a, bank-b"):
        network.member("bank-c")


def test_a_node_is_read_back_and_its_paths_start_at_its_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'member = "bank-a"\nlisten = "127.0.0.1:7600"\napi = "[::1]:7700"\n[limits]\nverify_processes = 3\n'
    )
    node = load_node(path)
    assert node == NodeConfig(
        member="bank-a",
        data_dir=tmp_path / "data",
        keys_dir=tmp_path / "keys",
        network_file=tmp_path / "network.toml",
        listen="127.0.0.1:7600",
        api="[::1]:7700",
        limits=Limits(verify_processes=3),
    )
    full = msgspec.structs.replace(
        node, passphrase_file=Path("/run/secret"), log_level="debug", data_dir=Path("/d")
    )
    path.write_text(dump_node(full))
    assert load_node(path) == full


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('listen = "127.0.0.1"', "listen '127.0.0.1' has no"),
        ('listen = "127.0.0.1:7700"', "api is the same address as listen"),
        ('log_level = "loud"', "log_level is wrong"),
        ('colour = "red"', "colour is not a known key"),
        ('member = "../../etc"', "member '../../etc' is no member id"),
        ("[limits]\nmempool_bytes_max = 1", r"limits\.mempool_bytes_max is wrong"),
        ("[limits]\nmempool_byte_max = 1", r"did you mean mempool_bytes_max\?"),
        ("[retention]\nkeep = 5", r"retention\.keep is not a known key; it belongs in \[snapshots\]$"),
        ("[retention]\nkep = 5", r"retention\.kep is not a known key; remove it$"),
        ("[retention]\nblocks = 10\narchive_dir = ''", r"retention\.archive_dir is empty"),
        ("[retention]\nblock = 50", r"retention\.block is not a known key; did you mean blocks\?$"),
        ("[limits]\ndata_dir = 'x'", r"limits\.data_dir is not a known key; it belongs above the first table$"),
        ("[disk]\nreserve_bytes = 1_000", r"disk\.reserve_bytes is wrong"),
        ("[disk]\nlow_bytes = 100_000_000", r"disk\.low_bytes is below reserve_bytes"),
    ],
)
def test_a_mistake_in_node_toml_is_named(tmp_path: Path, line: str, said: str) -> None:
    lines = {"member": '"bank-a"', "listen": '"127.0.0.1:7600"', "api": '"127.0.0.1:7700"'}
    lines.pop(line.split(" ")[0], None)
    path = tmp_path / "node.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in lines.items()) + f"\n{line}\n")
    with pytest.raises(ConfigError, match=said) as raised:
        load_node(path)
    assert raised.value.exit_code == 2


def test_addresses_are_split() -> None:
    assert split_address("bank-a.example:7600") == ("bank-a.example", 7600)
    assert split_address("[fe80::1%eth0]:1") == ("fe80::1%eth0", 1)
    for wrong in ("", ":1", "host:", "host:+1", "host:٣", "::1:7600", "a b:1", "host:01", "host:1\n", "-x:1"):
        with pytest.raises(ValueError, match="has no"):
            split_address(wrong)


def test_peers_are_links_and_no_part_of_the_network(tmp_path: Path) -> None:
    network = load(tmp_path, network_text())
    rotated = msgspec.structs.replace(
        network.members[1], tls_key=b"r" * 32, former_tls_key=network.members[1].tls_key
    )
    later = MemberConfig("bank-z", "observer", "host-9:7600", b"v" * 32, b"t" * 32)
    invited = msgspec.structs.replace(network, peers=(rotated, later), as_of=77)
    again = load(tmp_path, dump_network(invited))
    assert again == invited
    assert (again.genesis_hash, again.validators) == (network.genesis_hash, network.validators)
    assert [member.id for member in again.known] == [*[member.id for member in network.members], "bank-z"]
    assert again.known[1].tls_keys == (b"r" * 32, network.members[1].tls_key)
    assert again.member("bank-z") == later
    # Who founded the network is in the definition as it founded it.
    assert again.member("bank-b") == network.members[1]


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        (MemberConfig("Bank", "observer", "h:1", b"v" * 32, b"t" * 32), "no member id"),
        (MemberConfig("bank-z", "observer", "nowhere", b"v" * 32, b"t" * 32), "no host"),
        (MemberConfig("bank-z", "observer", "h:1", b"v" * 32, bytes.fromhex(hex_key(20))), "proves one member"),
    ],
)
def test_peers_that_cannot_be_are_refused(tmp_path: Path, peer: MemberConfig, said: str) -> None:
    network = load(tmp_path, network_text())
    with pytest.raises(ConfigError, match=said):
        dump_network(msgspec.structs.replace(network, peers=(peer,)))
