"""`hansa prove`: evidence packs for auditors, each checked by the stand-alone verifier before it is written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from consensus.codec import CodecError, decode_own, encode
from node.cli.files import require_new, write_new
from node.cli.options import Directory, anchor_option, connect, node_option, output_option, trusted_network
from node.cli.output import Output, message
from node.cli.reading import named
from node.cli.submitting import read_calls
from node.client import Client
from node.client import call as make_call
from node.client.arguments import arguments_from_text, find_method
from node.errors import ConfigError, NotFound, RejectedTransaction
from node.ledger import TRANSACTION_SIZE_MAX, Body, Call, sha256

if TYPE_CHECKING:
    from hansa_verify import Proof

    from node.evidence.pack import SealedPack

F = TypeVar("F", bound=Callable[..., Any])

DETAILS_SHOWN = 20

_HEX = frozenset("0123456789abcdef")


class Checkpoint(click.ParamType[tuple[int, bytes | None]]):
    """HEIGHT, or HEIGHT:DIGEST when the digest is known from elsewhere. The value is (height, digest or None)."""

    name = "checkpoint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        height, colon, digest = str(value).partition(":")
        if not (height.isascii() and height.isdigit() and len(height) <= 16):
            self.fail(f"{value!r} is no checkpoint: write HEIGHT or HEIGHT:DIGEST", param, ctx)
        if colon and not (len(digest) == 64 and set(digest) <= _HEX):
            self.fail("a digest is 64 lower-case hex digits", param, ctx)
        return int(height), bytes.fromhex(digest) if colon else None


class Order:
    """What all kinds of proof have in common: whom to ask, where to write, by which network definition to check."""

    def __init__(
        self,
        nodes: Sequence[str],
        directory: Directory,
        output: Output,
        out: Path,
        network_file: Path | None,
        checkpoint: tuple[int, bytes | None] | None,
        anchors: Sequence[Path],
    ) -> None:
        node = None if network_file else directory.node()
        if network_file is None and node is None:
            raise ConfigError(
                "invalid_usage", "no network definition is named: use --network network.toml or --dir"
            )
        self.network_file = network_file or (node.network_file if node else Path())
        self.network = trusted_network(network_file, directory, anchors)
        own = sorted(node.recoveries_dir.glob("*.json")) if node else []
        self._anchors = [*own, *anchors]
        require_new(out, "proof_not_written")
        self._nodes, self._directory, self._output, self._out = nodes, directory, output, out
        self._checkpoint = checkpoint

    @property
    def checkpoint(self) -> int | None:
        """The height to which the pack's headers shall lead."""
        return None if self._checkpoint is None else self._checkpoint[0]

    def connect(self) -> Client:
        """A client of the node that makes the pack."""
        return connect(self._nodes, self._directory)

    def deliver(self, pack: bytes, expect: str) -> None:
        """The pack proves `expect` ("KIND:SUBJECT"), lies in the file, and what it proves is said; else raise."""
        proof, known = self.verified(pack, expect)
        write_new(self._out, pack, "proof_not_written")
        if self._output.as_json:
            self._output.document(
                {
                    "file": str(self._out),
                    "bytes": len(pack),
                    "kind": proof.kind,
                    "subject": proof.subject,
                    "checkpoint": known,
                    "proven": proof.proven,
                    "details": proof.details,
                    "assumed": proof.assumed,
                }
            )
            return
        claim, *blocks = proof.proven
        self._output.text(claim)
        for line in proof.details[:DETAILS_SHOWN]:
            self._output.text(f"  {line}")
        if len(proof.details) > DETAILS_SHOWN:
            self._output.text(f"  and {len(proof.details) - DETAILS_SHOWN} more")
        for sentence in blocks:
            self._output.text(sentence)
        self._output.text("It rests on this:")
        for sentence in proof.assumed:
            self._output.text(f"- {sentence}")
        given = ["hansa-verify", str(self._out), "--genesis", self.network_file.name]
        if known is not None:
            given += ["--checkpoint", known]
        for path in self._anchors:
            given += ["--anchor", path.name]
        message(f"hansa: wrote {self._out} ({len(pack)} bytes); the auditor runs: {' '.join(given)}")

    def verified(self, pack: bytes, expect: str) -> tuple["Proof", str | None]:
        """What the verifier says of the pack, and the checkpoint that it leads to; raise proof_refused."""
        try:
            import hansa_verify
        except ImportError as error:
            raise ConfigError("verifier_missing", str(error)) from error
        known: str | None = None
        if self._checkpoint is not None:
            height, digest = self._checkpoint
            known = f"{height}:{(digest or _last_digest(pack)).hex()}"
        try:
            anchors = [path.read_bytes() for path in self._anchors]
            return hansa_verify.verify(pack, self.network_file.read_bytes(), known, expect, anchors), known
        except hansa_verify.Refused as error:
            raise RejectedTransaction("proof_refused", str(error)) from error


def _opened(pack: bytes) -> "SealedPack":
    """What the pack says, not yet judged; raise proof_refused when it is none."""
    # Imported here: it loads the contracts, which takes longer than most commands.
    from node.evidence.pack import SealedPack

    try:
        return decode_own(pack, SealedPack, size_max=len(pack))
    except CodecError as error:
        raise RejectedTransaction("proof_refused", f"the answer is no evidence pack: {error}") from error


def _last_digest(pack: bytes) -> bytes:
    """The digest of the last header in the pack: the checkpoint, which an auditor has to know from elsewhere."""
    content = _opened(pack)
    if not content.blocks:
        raise RejectedTransaction("proof_refused", "the answer proves no block")
    return (content.links[-1] if content.links else content.blocks[-1].header).digest


def proof_options(command: F) -> F:
    """--out, --network, --checkpoint, --anchor, --node, --dir and --json, as `order`."""

    def with_order(
        *,
        nodes: Sequence[str],
        directory: Directory,
        output: Output,
        out: Path,
        network_file: Path | None,
        checkpoint: tuple[int, bytes | None] | None,
        anchors: Sequence[Path],
        **others: Any,
    ) -> Any:
        order = Order(nodes, directory, output, out, network_file, checkpoint, anchors)
        return command(order=order, **others)

    with_order.__doc__, with_order.__name__ = command.__doc__, command.__name__
    made: Any = anchor_option(node_option(output_option(with_order)))
    for option in (
        click.option(
            "--checkpoint",
            type=Checkpoint(),
            metavar="HEIGHT[:DIGEST]",
            help="Put in the headers up to this block: whoever knows its digest needs to trust no old key.",
        ),
        click.option(
            "--network",
            "network_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The definition that the pack is checked against (default: that of the node's directory).",
        ),
        click.option(
            "--out",
            required=True,
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Where the pack is written; nothing is overwritten.",
        ),
    ):
        made = option(made)
    result: F = made
    return result


at_option = click.option(
    "--at",
    "at_height",
    type=click.IntRange(min=1),
    metavar="HEIGHT",
    help="After this block (default: the newest).",
)


@click.group()
def prove() -> None:
    """Prove something to an auditor: write a file that hansa-verify accepts with network.toml alone, offline."""


@prove.command("tx")
@click.argument("tx_id")
@proof_options
def prove_tx(order: Order, tx_id: str) -> None:
    """A final transaction: what was signed, by whom, and the outcome of each call."""
    with order.connect() as client:
        pack = client.prove_transaction(tx_id, checkpoint=order.checkpoint)
    order.deliver(pack, f"transaction:{tx_id}")


@prove.command("state")
@click.argument("contract")
@click.argument("field")
@click.argument("key", nargs=-1, metavar="[KEY …]")
@at_option
@proof_options
def prove_state(order: Order, contract: str, field: str, key: Sequence[str], at_height: int | None) -> None:
    """A value that a contract keeps: for example `hansa prove state settlement accounts ACC-1 --out FILE`."""
    _prove_key(order, "state", contract, field, key, at_height)


@prove.command("absence")
@click.argument("contract")
@click.argument("field")
@click.argument("key", nargs=-1, metavar="[KEY …]")
@at_option
@proof_options
def prove_absence(order: Order, contract: str, field: str, key: Sequence[str], at_height: int | None) -> None:
    """That a contract keeps nothing under a key: `hansa prove absence settlement movements UETR --out FILE`."""
    _prove_key(order, "absence", contract, field, key, at_height)


def _prove_key(
    order: Order, kind: str, contract: str, field: str, key: Sequence[str], at_height: int | None
) -> None:
    # Imported here: it loads the contracts, which takes longer than most commands.
    from contracts import CONTRACTS, FURTHER
    from node.evidence import named_key

    # Made here and not by the node, so that it cannot answer with the proof of another key.
    wanted = named_key((*CONTRACTS, *FURTHER), contract, field, key)
    with order.connect() as client:
        pack = client.prove_state(contract, field, *key, at_height=at_height, checkpoint=order.checkpoint)
    contrary = "absence" if kind == "state" else "state"
    if _opened(pack).kind == contrary:
        # An honest answer to the wrong question, unless the verifier refuses it: then the node is not believed.
        proof, _ = order.verified(pack, f"{contrary}:{wanted.hex()}")
        named, height = " ".join((contract, field, *key)), proof.blocks[0].height
        if kind == "state":
            text = f"there is no value under {named} after block {height}"
            raise NotFound("no_value", text, height=height)
        text = f"there is a value under {named} after block {height}"
        raise RejectedTransaction("value_present", text, height=height)
    order.deliver(pack, f"{kind}:{wanted.hex()}")


@prove.command("statement")
@click.argument("account")
@click.option("--from", "from_height", required=True, type=click.IntRange(min=1), metavar="HEIGHT", help="Opening.")
@click.option(
    "--to", "to_height", type=click.IntRange(min=1), metavar="HEIGHT", help="Closing (default: the newest)."
)
@proof_options
def prove_statement(order: Order, account: str, from_height: int, to_height: int | None) -> None:
    """All entries of a settlement account after one block and up to another, none missing, with both balances."""
    if to_height is not None and to_height <= from_height:
        raise ConfigError(
            "invalid_usage", f"--from is an earlier block than --to, not {from_height} to {to_height}"
        )
    with order.connect() as client:
        pack = client.prove_statement(account, from_height, to_height, checkpoint=order.checkpoint)
    order.deliver(pack, f"statement:{account}")


@prove.command("not-executed")
@click.argument("transaction", required=False, metavar="[TX_ID | FILE | CONTRACT.METHOD]")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE …]")
@click.option("--as", "sender", metavar="PRINCIPAL", help="Who sent it (with --request-id).")
@click.option("--request-id", metavar="ID", help="Make the transaction again from what was sent, to the letter.")
@click.option("--expires-at-ms", type=click.IntRange(min=0), metavar="MS", help="Its expiry (with --request-id).")
@click.option("--mode", type=click.Choice(["atomic", "each"]), default="atomic", show_default=True)
@click.option(
    "--file",
    "calls_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Its calls as for `hansa tx submit --file` (with --request-id).",
)
@at_option
@proof_options
def prove_not_executed(
    order: Order,
    transaction: str | None,
    arguments: Sequence[str],
    sender: str | None,
    request_id: str | None,
    expires_at_ms: int | None,
    mode: Literal["atomic", "each"],
    calls_file: Path | None,
    at_height: int | None,
) -> None:
    """That an expired transaction was not executed and never will be, so that it may be paid again.

    Name it by its id (at the node that took it), by the file that `hansa tx submit --save` wrote, or by all that
    was in it: CONTRACT.METHOD NAME=VALUE … (or --file), --as, --request-id, --expires-at-ms.
    """
    with order.connect() as client:
        given: str | bytes
        if request_id is not None:
            if sender is None or expires_at_ms is None or (transaction is None) == (calls_file is None):
                raise ConfigError(
                    "invalid_usage",
                    "--request-id wants --as, --expires-at-ms, and either CONTRACT.METHOD with arguments or --file",
                )
            calls = _calls(client, transaction, arguments, calls_file)
            network = order.network.network_id
            given = encode(Body(network, sender, request_id, expires_at_ms, mode, calls))
        elif transaction is None or arguments or calls_file is not None:
            raise ConfigError(
                "invalid_usage", "name the transaction: TX_ID, its FILE, or its content by --request-id"
            )
        elif len(transaction) == 64 and set(transaction) <= _HEX:
            given = transaction
        else:
            given = _read_transaction(Path(transaction))
        tx_id = given if isinstance(given, str) else _tx_id(given, order.network.network_id)
        pack = client.prove_not_executed(given, at_height=at_height, checkpoint=order.checkpoint)
    order.deliver(pack, f"not_executed:{tx_id}")


def _calls(
    client: Client, method: str | None, arguments: Sequence[str], calls_file: Path | None
) -> tuple[Call, ...]:
    contracts = client.contracts()
    if method is None:
        return tuple(read_calls(calls_file or Path("-"), contracts))
    schema = find_method(contracts, method, query=False).arguments
    return (make_call(method, arguments_from_text(schema, named(arguments))),)


def _read_transaction(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(TRANSACTION_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError("invalid_usage", f"{file}: {error.strerror or error}") from error
    if len(data) > TRANSACTION_SIZE_MAX:
        raise ConfigError("invalid_usage", f"{file}: is larger than a transaction can be")
    return data


def _tx_id(data: bytes, network: str) -> str:
    """The id of a transaction of `network`, given signed or as its body alone."""
    # Imported here: it loads the contracts, which takes longer than most commands.
    from node.evidence import read_body

    _, body_bytes = read_body(data, network)
    return sha256(b"hansa/tx" + body_bytes).hex()
