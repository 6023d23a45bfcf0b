"""Founds a test network: passphrase, keys, network.toml, and each member's directory as `hansa init` makes it."""

import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from node.cli.founding import PublicKey, join_network, make_keys
from node.config import MemberConfig, NetworkConfig, Parameters, PrincipalConfig, dump_network, load_network
from node.config.rules import check_parameters, convert
from scripts.localnet import processes, wiring
from scripts.localnet.layout import Layout, Member, Network, TestnetError, addresses, member_names
from scripts.localnet.replay import Cast

NETWORK_NAME = "testnet"
EXPONENT = 2


def found(
    layout: Layout,
    count: int,
    base_port: int,
    *,
    proxied: bool = False,
    parameters: Parameters | None = None,
) -> Network:
    """The directory holds a network of `count` members that can be started; an interrupted founding is completed.

    `proxied`: the nodes reach each other through a proxy (scripts.localnet.proxy) that can cut and slow links.

    Raise TestnetError, before anything is written, for used ports and for a directory with other things in it.
    """
    names = member_names(count)
    places = [addresses(index, base_port) for index in range(count)]
    used = processes.used_addresses(address for place in places for address in place)
    if used:
        raise TestnetError(f"in use by another program: {', '.join(used)}; end it, or take another --base-port")
    phrase = _passphrase(layout)
    cast = Cast(tuple(names))
    principals = {name: [name, *(p for p in cast.staff if p.startswith(f"{name}/"))] for name in names}

    def keys_of(name: str) -> list[PublicKey]:
        return make_keys(layout.member_dir(name), name, principals[name], phrase)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        keys = dict(zip(names, threads.map(keys_of, names), strict=True))
    network = _definition(cast, keys, [listen for listen, _ in places], parameters or Parameters())
    layout.network_file.write_text(dump_network(network))
    for name, (listen, api) in zip(names, places, strict=True):
        join_network(
            layout.member_dir(name),
            name,
            layout.network_file,
            listen=listen,
            api=api,
            passphrase_file=layout.passphrase_file,
        )
    members = tuple(
        Member(id=name, listen=listen, api=f"http://{api}", data_dir=str(layout.member_dir(name) / "data"))
        for name, (listen, api) in zip(names, places, strict=True)
    )
    if proxied:
        plan = wiring.plan(members, base_port)
        wiring.lead_through(layout, plan.wires)
        layout.proxy_file.write_bytes(msgspec.json.encode(plan))
    made = Network(network.network_id, members)
    layout.save(made)
    return made


def read_parameters(given: Sequence[str]) -> Parameters:
    """Return a network's parameters with those of `given` ("NAME=VALUE"); raise ConfigError, TestnetError."""
    where = "--parameter"
    found: dict[str, int] = {}
    for item in given:
        name, sign, text = item.partition("=")
        digits = text.replace("_", "")
        if not sign or not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
            raise TestnetError(
                f"{where} {item!r}: write NAME=VALUE, the value a whole number, as in retention_ms=60000"
            )
        if found.setdefault(name, int(digits)) != int(digits):
            raise TestnetError(f"{where} {name}: has two values")
    parameters = convert(Path(where), found, Parameters)
    check_parameters(parameters, where)
    return parameters


def require_parameters(layout: Layout, given: Sequence[str]) -> None:
    """The founded network has the parameters `given` ("NAME=VALUE"); raise ConfigError, TestnetError otherwise."""
    wanted, known = read_parameters(given), load_network(layout.network_file).parameters
    for name in [item.partition("=")[0] for item in given]:
        there, asked = getattr(known, name), getattr(wanted, name)
        if there != asked:
            raise TestnetError(
                f"{layout.directory} holds a network with {name} = {there}, not {asked}: parameters are part of "
                "genesis and never change; take another --dir"
            )


def key_file(layout: Layout, principal: str) -> Path:
    """Where the signing key of a principal lies."""
    member = principal.partition("/")[0]
    return layout.member_dir(member) / "keys" / f"{principal.replace('/', '.')}.key"


def _passphrase(layout: Layout) -> str:
    """The directory's passphrase, made now for a new one."""
    if layout.passphrase_file.exists():
        return layout.passphrase_file.read_text().strip()
    if layout.directory.exists() and any(layout.directory.iterdir()):
        raise TestnetError(f"{layout.directory} is not empty and holds no test network; take another --dir")
    layout.directory.mkdir(parents=True, exist_ok=True)
    phrase = secrets.token_hex(16)
    descriptor = os.open(layout.passphrase_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(phrase + "\n")
    return phrase


def _definition(
    cast: Cast, keys: dict[str, list[PublicKey]], listen: list[str], parameters: Parameters
) -> NetworkConfig:
    members = []
    for name, address in zip(cast.members, listen, strict=True):
        public = {key.kind: bytes.fromhex(key.public_key) for key in keys[name]}
        members.append(MemberConfig(name, "validator", address, public["voting"], public["tls"]))
    principals = [
        PrincipalConfig(key.id, (bytes.fromhex(key.public_key),), 1)
        for name in cast.members
        for key in keys[name]
        if key.kind == "principal"
    ]
    currencies = [
        {"code": code, "exponent": EXPONENT, "issuer": issuer} for code, issuer in sorted(cast.issuers.items())
    ]
    contracts = {"settlement": {"currencies": currencies}}
    return NetworkConfig(NETWORK_NAME, tuple(members), tuple(principals), parameters, contracts)
