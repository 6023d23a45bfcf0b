"""`hansa tx build` and `hansa tx sign`: a transaction that is made, signed and sent on different machines.

`build` asks a node; `sign` reads one file and one key and needs no network; `hansa tx submit --signed` sends.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import click
import msgspec

from node.cli.confirming import require_yes
from node.cli.files import replace_file, write_new
from node.cli.options import (
    Directory,
    Duration,
    calls_options,
    connect,
    directory_option,
    key_files,
    node_option,
    output_option,
    passphrase,
    principal_key_info,
    token_key,
)
from node.cli.output import Output, message
from node.cli.submitting import calls_of
from node.cli.transaction_files import known_policy, read_transaction_file, shown_path, words_of
from node.client import Signer, draft
from node.client.transaction_file import FILE_SIZE_MAX, PolicyKey, TransactionFile
from node.config import load_network
from node.errors import ConfigError, RejectedTransaction
from node.hardware import names_device
from node.keys import read_key_file
from node.ledger import EXPIRY_AHEAD_MS_MAX


class Standing(msgspec.Struct, frozen=True):
    """A transaction file for programs: `missing` signatures are wanted yet, and `signers` can give them (hex)."""

    file: str
    tx_id: str
    network: str
    sender: str
    request_id: str
    expires_at_ms: int
    signed_by: tuple[str, ...]
    missing: int
    signers: tuple[PolicyKey, ...]


@click.command()
@calls_options
@click.option(
    "--as", "sender", required=True, metavar="PRINCIPAL", help="Who acts, and whose policy says who signs."
)
@click.option(
    "--request-id",
    metavar="ID",
    help="Your own id: one transaction at most has an effect under it; a second one is refused.",
)
@click.option("--expires", type=Duration(), default="12h", show_default=True, help="Time to sign; at most 24h.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The new file.")
@node_option
@output_option
def build(
    method: str | None,
    arguments: Sequence[str],
    calls_file: Path | None,
    mode: Literal["atomic", "each"],
    sender: str,
    request_id: str | None,
    expires: int,
    out: Path,
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> None:
    """Write an unsigned transaction to a file, for others to sign.

    Needs a node and no key: the node says what the methods take and who may sign. Then `hansa tx sign FILE`, once a
    signer, on machines that need no network; then `hansa tx submit --signed FILE`.
    """
    if not 0 < expires <= EXPIRY_AHEAD_MS_MAX:
        raise ConfigError("invalid_usage", "--expires is more than nothing and at most 24h")
    with connect(nodes, directory) as client:
        calls = calls_of(client, method, arguments, calls_file)
        policy = known_policy(client, sender)
        body = draft(client.network(), sender, calls, request_id=request_id, expires_in_ms=expires, mode=mode)
    made = TransactionFile(body, policy)
    data = made.encode()
    if len(data) > FILE_SIZE_MAX:
        raise RejectedTransaction("transaction_too_large", f"its file has {len(data):,} bytes; split it")
    write_new(out, data, "transaction_file_not_written")
    _show(output, out, made)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--key", metavar="FILE|URI", help="Your key file; or a key in a device: pkcs11:token=…;object=…?module-path=…"
)
@click.option(
    "--network",
    "network_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="network.toml: a transaction of another network is refused.",
)
@click.option("--yes", is_flag=True, help="Sign without asking; what is signed is shown all the same.")
@directory_option
@output_option
def sign(
    file: Path,
    key: str | None,
    network_file: Path | None,
    yes: bool,
    directory: Directory,
    output: Output,
) -> None:
    """Add your signature to a transaction file, after showing what it says.

    Works without a network. Every word that is shown is made from the bytes that are signed; a file that was
    altered, has expired, or is not yours to sign is refused.
    """
    found = read_transaction_file(file)
    for line in words_of(found, file):
        click.echo(line, err=output.as_json)
    _require_network(found, network_file)
    _require_time(found)
    public, signer = _signer(key, found, directory)
    # Said before anybody is asked for a passphrase or a PIN.
    found.require_wanted(public)
    if not yes:
        require_yes("Sign this?")
    signature = found.signature_of(signer())
    signed = _as_it_is_now(file, found).with_signature(signature)
    replace_file(file, signed.encode(), "transaction_file_not_written")
    _show(output, file, signed)


def _as_it_is_now(file: Path, found: TransactionFile) -> TransactionFile:
    """The file again: somebody else may have signed it while this signer was reading, and that signature stays."""
    latest = read_transaction_file(file)
    if latest.tx_id != found.tx_id:
        raise ConfigError(
            "transaction_file_altered", f"{file}: holds another transaction than the one that was shown"
        )
    return latest


def _signer(key: str | None, found: TransactionFile, directory: Directory) -> tuple[bytes, Callable[[], Signer]]:
    """The public key of who signs, and what opens the key and asks for its passphrase (a device: as it signs).

    Of several key files of the sender the first whose key the file's policy names: no node is asked here.
    """
    if key is not None and names_device(key):
        device = token_key(key)
        return device.public, lambda: device
    files = [Path(key)] if key is not None else key_files(found.body.sender, directory)
    keys = [principal_key_info(path).public_key for path in files]
    place = next((index for index, public in enumerate(keys) if found.policy.key(public)), 0)
    if len(files) > 1:
        message(f"hansa: of {len(files)} keys of {found.body.sender} here, {files[place]} is taken")
    return keys[place], lambda: read_key_file(files[place], passphrase(directory), kind="principal")[1]


def _require_network(found: TransactionFile, network_file: Path | None) -> None:
    if network_file is None:
        message("hansa: no --network network.toml: that this is your network was not checked")
        return
    network = load_network(network_file).network_id
    if found.body.network != network:
        raise RejectedTransaction(
            "wrong_network", f"it is for {found.body.network}, and {network_file} defines {network}"
        )


def _require_time(found: TransactionFile) -> None:
    """Return when the ledger could take it now: one for a later day would wait for whoever keeps the file."""
    late_ms = time.time_ns() // 1_000_000 - found.body.expires_at_ms
    if late_ms < -EXPIRY_AHEAD_MS_MAX:
        raise RejectedTransaction(
            "expiry_too_far",
            "by this machine's clock it ends more than 24 hours from now: the ledger takes it later",
        )
    if late_ms >= 0:
        raise RejectedTransaction(
            "expired", f"by this machine's clock it ended {late_ms // 1000:,} s ago; build it again and sign that"
        )


def _show(output: Output, file: Path, found: TransactionFile) -> None:
    body = found.body
    missing, others = found.policy.lacking(found.signers)
    if output.as_json:
        output.document(
            Standing(
                file=shown_path(file),
                tx_id=found.tx_id.hex(),
                network=body.network,
                sender=body.sender,
                request_id=body.request_id,
                expires_at_ms=body.expires_at_ms,
                signed_by=tuple(public.hex() for public in found.signers),
                missing=missing,
                signers=others,
            )
        )
        return
    if not found.signatures:
        for line in words_of(found, file):
            click.echo(line)
    else:
        click.echo(f"signed: {found.standing()}")
    click.echo("next: hansa tx submit --signed FILE" if missing == 0 else "next: hansa tx sign FILE --key KEY")
