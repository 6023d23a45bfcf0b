# fmt: off
"""Judges an evidence pack of a Hansa ledger offline, with nothing but the network's genesis file (network.toml).

Read it from the top: `verify` is the argument, the rest are its steps. Nobody is believed but the genesis file:
1. It names the first validators. Each change of them is a block that a quorum of those before it has signed, and
   whose header carries the hash of the list after it. So, from genesis on, only validators name validators.
2. The proven block is signed by a quorum of the validators of its height. Two quorums of n members share more than
   f = (n - 1) // 3 of them, so an honest one, who signs one block a height: there is no second such block.
   Where a quorum was lost for good, the survivors alone went on: from a block that only your own --anchor makes good.
3. Its header carries the roots of three hash trees: transactions, receipts, state. The item lies below its root, or
   is absent from the one place where it could lie."""
import argparse
import hashlib
import json
import os
import re
import tomllib
from collections import namedtuple
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
from nacl import exceptions, signing

# Forms of values: [a, b] are these in order, (a,) any number of them, 32 is so many bytes, object is any single value.
HEADER = [str, int, 32, int, str, 32, 32, 32, 32, 32]
BLOCK = [HEADER, [int, ([int, 64],)]]  # and its certificate: view, (place of the member in the list, signature)
CHANGE = [*BLOCK, ([str, 32],)]  # and the (id, voting key) of those who decide the next height
PATH = ([int, 32],)  # from a leaf up: whether the other hash stands left (0) or right (1), and that hash
PRESENT = [bytes, bytes, (480,), bytes]  # key, value, 15 other children of each node from the top, the leaf's pairs
ABSENT, EITHER = [bytes, type(None), (480,), bytes], [bytes, bytes | None, (480,), bytes]
BODY = [str, str, str, int, str, ([str, str, dict],)]  # network, sender, request id, expires_at_ms, mode, calls
ENTRY = [str, int, int, str, int, str | None, str | None, str, int]  # account, number, height, kind, amount, …, balance
KINDS = {  # the blocks and the item of a pack
    "transaction": ([BLOCK], [bytes, PATH, bytes, PATH]), "statement": ([BLOCK, BLOCK], [EITHER, PRESENT, (bytes,)]),
    "not_executed": ([BLOCK], [bytes, EITHER]), "state": ([BLOCK], [PRESENT]), "absence": ([BLOCK], [ABSENT])}
PARAMETERS = {  # what the genesis hash covers where the file is silent
    "state_tree_bits": 16, "rotation_heights": 10_000, "base_timeout_ms": 2_000, "timeout_cap_ms": 10_000,
    "status_interval_ms": 500, "empty_block_interval_ms": 60_000, "drift_ms": 5_000, "block_transactions_max": 2_000,
    "block_calls_max": 4_000, "block_bytes_max": 2 * 1024 * 1024, "block_operations_max": 2_000_000,
    "call_operations_max": 100_000, "scheduled_calls_max": 200, "retention_ms": 86_400_000,
    "pruned_requests_max": 2_000, "censorship_blocks": 20, "snapshot_blocks": 10_000}
PACK_MAX, BODY_MAX, KEY_MAX, NESTED_MAX = 64 * 1024 * 1024, 2 * 1024 * 1024, 1024, 1_000_000  # bytes; array items
Network = namedtuple("Network", "network_id genesis_hash validators state_tree_bits retention_ms")
Block = namedtuple("Block", "height time_ms tx_root receipts_root state_root digest signers members")
Anchor = namedtuple("Anchor", "height digest kept validators")  # a recovery's block, the kept one below it or b"", who
Proof = namedtuple("Proof", "kind subject proven details assumed blocks")
Said = tuple[str, str, list[str]]  # what an item is about, what it proves, and the lines that belong to it

class Refused(ValueError):
    """The pack (or the genesis file) proves nothing; the text is the reason, in one line."""

def verify(pack: bytes, genesis: bytes, checkpoint: str | None = None, expect: str | None = None,
           anchors: Sequence[bytes] = ()) -> Proof:
    """Return what `pack` proves to who trusts the file `genesis`; raise Refused with the reason.
    `checkpoint` ("HEIGHT:DIGEST") is a later block, known from elsewhere. `expect` ("KIND:SUBJECT") refuses what
    proves something else: a valid proof of the wrong thing is the easiest forgery. A key may stand there in hex.
    `anchors` are the recovery files that you trust like the genesis file; never take one from who gave you the pack."""
    kind = next((name for name in KINDS if pack.startswith(encode(["hansa/evidence", 1, name])[1:], 1)), "")
    require(kind != "", "this is no evidence pack of version 1")
    form = [str, int, str, (CHANGE,), KINDS[kind][0], (HEADER,), KINDS[kind][1], 32]
    *content, seal = decode(pack, form, "the pack", nested_max=0)
    require(seal == sha256(encode(content)), "the file is damaged: it does not end with the hash of its content")
    changes, rows, links, item = content[3:]
    network = read_network(genesis)
    judge = Judge(network, changes, rows, [read_anchor(anchor, network) for anchor in anchors])
    judge.follow(links, checkpoint)
    subject, claim, details = getattr(judge, kind)(*item)
    names = [subject, item[0][0].hex()] if kind in ("state", "absence") else [subject]
    require(expect in (None, *[f"{kind}:{name}" for name in names]), f"the pack proves {kind}:{subject}, not {expect}")
    proven = [claim] + [
        f"Block {block.height}, {block.digest.hex()}, was decided at {utc(block.time_ms)} (block time) with the "
        f"signatures of {', '.join(block.signers)}: a quorum of its {block.members} members." for block in judge.blocks]
    assumed = ["The genesis file is the network's.", "At no height more than (n - 1) // 3 of n members cheated."]
    assumed += [f"The recovery {anchor.digest.hex()} at block {anchor.height} is the one that the members agreed on."
                for anchor in judge.passed]
    assumed += [f"{checkpoint} is a genuine block of the network: the last one above leads to it."] * bool(checkpoint)
    if bare := rows[: -1 if checkpoint else None]:  # no checkpoint stands behind these blocks
        assumed.append(f"No quorum of members up to block {bare[-1][0][1]} lost its keys, then or since; they could "
                       "rewrite it. A --checkpoint rules that out for the last block of a pack.")
    return Proof(kind, subject, proven, details, assumed, judge.blocks)

class Judge:
    """The network and the pack's blocks, decided by its validators; a method for each kind of item."""
    def __init__(self, network: Network, changes: list[Any], rows: list[Any], anchors: Sequence[Anchor] = ()) -> None:
        """Every block is signed by the list of its own height, which follows from genesis change by change.
        A header's members_hash names the list of the next height, and must name the one that we have come to: so a
        pack that leaves out a change is refused, and no block is judged by the list of another epoch."""
        self.network, self.blocks, validators, last = network, list[Any](), network.validators, 0
        self.passed = sorted(anchor for anchor in anchors if anchor.height - bool(anchor.kept) <= rows[-1][0][1])
        theirs = [at for (last_one, _, kept, _) in self.passed for at in range(last_one - bool(kept), last_one + 1)]
        require(ascending(theirs), "two anchors for one height: choose a history")
        proven, changing = [row[0][1] for row in rows], [row[0][1] for row in changes]
        require(ascending(proven) and ascending(changing), "blocks or changes do not ascend")
        require(changing[-1:] <= proven[-1:], "a change of the validators is later than all that is proven")
        steps = changes + [row for row in rows if row not in [change[:2] for change in changes]]  # alike in both
        needed = {anchor.height for anchor in self.passed if anchor.height <= proven[-1]}
        require(needed <= {*changing}, "the pack leaves out a recovery that you "
                "anchored: it is of another history, for each recovery changes the validators")
        for header, (view, signatures), *after in sorted(steps, key=lambda step: step[0][1]):
            network_id, height, parent, time_ms, proposer, *roots, members_hash, _ = header
            digest = sha256(b"hansa/header", encode(header))
            anchored = {digest: None}  # who decides the height if not those before it: survivors, one block of theirs
            for anchor in self.passed:
                if height in (anchor.height, anchor.height - bool(anchor.kept)):
                    anchored = {anchor.digest if height == anchor.height else anchor.kept: anchor.validators}
            require(digest in anchored, f"block {height} is another one than in the recovery that you anchored: this "
                    "is the history of other members")
            require(proposer != "@recovery" or anchored[digest] is not None, f"the chain was recovered at block "
                    f"{height} by its survivors: get the recovery file {digest.hex()} from a member, by another way "
                    "than this pack came, compare its number with a second member, and name it with --anchor")
            before, validators = validators, anchored[digest] or validators
            require(network_id == network.network_id, f"block {height} belongs to another network")
            require(height > last and 0 <= time_ms < 2**47, f"block {height} is there twice, or before all time")
            require(height > 1 or parent == network.genesis_hash, "block 1 does not stand on the genesis file")
            quorum = (len(validators) + (len(validators) - 1) // 3) // 2 + 1
            places = [place for place, _ in signatures]
            require(len(places) == quorum, f"block {height} needs exactly the {quorum} signatures of a quorum")
            require(ascending([-1, *places, len(validators)]), "signers do not ascend: nobody may count twice")
            vote = encode(["hansa/vote", network_id, 2, view, height, digest])  # 2 decides; 1 (prepare) does not
            for place, signature in signatures:
                try:
                    signing.VerifyKey(validators[place][1]).verify(vote, signature)
                except exceptions.BadSignatureError:
                    raise Refused(f"{validators[place][0]} has not signed block {height} as it stands here") from None
            if height in proven:
                signers = [validators[place][0] for place in places]
                self.blocks.append(Block._make([height, time_ms, *roots, digest, signers, len(validators)]))
            validators = before
            for following in after:
                require(distinct(following) and following != validators, f"no change of validators in block {height}")
                validators = following
            listed = encode([[name, "validator", key] for name, key in validators])
            require(members_hash == sha256(b"hansa/members", listed), f"block {height} names other validators after it")
            last = height

    def follow(self, links: list[Any], checkpoint: str | None) -> None:
        """A header names its parent's digest: who knows the last digest knows all the blocks before it."""
        require(checkpoint is not None or not links, "the pack leads to a checkpoint: name it with --checkpoint")
        height, digest = self.blocks[-1].height, self.blocks[-1].digest
        for header in links:
            require(header[:3] == [self.network.network_id, height + 1, digest], f"headers break after block {height}")
            height, digest = height + 1, sha256(b"hansa/header", encode(header))
        require(checkpoint in (None, end := f"{height}:{digest.hex()}"), f"the pack leads to {end}, no checkpoint")

    def transaction(self, data: bytes, path: Any, receipt: bytes, receipt_path: Any) -> Said:
        """The transaction lies below tx_root; its receipt, which names its id, below receipts_root."""
        block = self.blocks[0]
        require(merkle_root(data, path) == block.tx_root, "the transaction is not in the block")
        require(merkle_root(receipt, receipt_path) == block.receipts_root, "the receipt is not in the block")
        body, signatures = decode(data, [bytes, ([32, 64],)], "the transaction")
        tx_id, name, _, calls = self.read_body(body)
        receipt_tx_id, outcomes = decode(receipt, [32, ([str, list],)], "the receipt")
        require(receipt_tx_id == tx_id and len(outcomes) == len(calls), "the receipt is another transaction's")
        details = [f"signed with the key {key.hex()}, as the block's members have checked" for key, _ in signatures]
        details += [f"{shown(call)}: {outcome[0]}" for call, outcome in zip(calls, outcomes, strict=True)]
        return tx_id.hex(), f"{name} is final in block {block.height}: its keys, and what its calls came to:", details

    def state(self, proof: list[Any]) -> Said:
        """The key has this value (as absence: none) in the state after the block."""
        value, key = self.read_state(0, proof), named(proof[0])
        held = "nothing" if value is None else shown(decode(value, object, "the value"))
        return key, f"After block {self.blocks[0].height} the state holds under the key {key}: {held}", []
    absence = state  # the form of the item says which of the two

    def not_executed(self, data: bytes, proof: list[Any]) -> Said:
        """No block past its expiry can contain the transaction; while request ids are kept, an executed one shows.
        So only a block with expires_at_ms < time_ms <= expires_at_ms + retention_ms proves "not yet" and "never"."""
        tx_id, name, (sender, request_id, expires_at_ms), _ = self.read_body(data)
        late_ms = self.blocks[0].time_ms - expires_at_ms
        require(late_ms > 0, "the block is not past the expiry: the transaction could still be executed")
        require(late_ms <= self.network.retention_ms, "the block is past the retention: absence says nothing there")
        require(proof[0] == state_key("ledger", "request", sender, request_id), "the proof is of another request id")
        record = self.read_state(0, proof)
        user = None if record is None else decode(record, [32, int, int], "the request record")[0]
        require(user != tx_id, "the transaction was executed: the state remembers it")
        why = f"its request id was used by another, {user.hex()}" if user else "its request id is unused"
        return tx_id.hex(), f"{name} was not executed and never will be: expired {utc(expires_at_ms)}, {why}.", []

    def statement(self, opening: list[Any], closing: list[Any], entries: list[bytes]) -> Said:
        """An account counts its entries and chains their hashes: other entries lead to another count or chain."""
        first, second = self.read_state(0, opening), self.read_state(1, closing)
        start_height, end_height = self.blocks[0].height, self.blocks[1].height
        name = opening[0][len(state_key("settlement", "accounts")) + 1 : -2].decode("ascii", "replace")
        require(opening[0] == closing[0] == state_key("settlement", "accounts", name), "these are two accounts")
        start, _, count, chain = (0, 0, 0, b"") if first is None else decode(first, list, "the account")[2:6]
        owner, currency, *end = decode(second, list, "the account")[:6]
        balance, height, details = start, start_height + 1, list[str]()
        for data in entries:
            account, number, at, kind, amount, other, _, _, after = decode(data, ENTRY, "an entry")
            count, balance, chain = count + 1, balance + amount, sha256(b"\x92", encode(chain), data)
            require((account, number, after) == (name, count, balance), f"entry {count} does not continue the account")
            require(height <= (height := at) <= end_height, f"entry {count} is out of order, or not between the blocks")
            details.append(f"entry {number}, block {at}: {kind} {amount:+d} (other side {shown(other)}), then {after}")
        require([balance, count, chain] == [end[0], *end[2:]], "the entries do not lead to the account at the end")
        said = f"Account {name} of {owner} held {start} {currency} (minor units) after block {start_height}, {balance} "
        return name, f"{said}after block {end_height}. Its entries in between, none left out ({len(entries)}):", details

    def read_state(self, index: int, proof: list[Any]) -> Any:
        """The value of the proof's key below the state_root of a block; None when it is absent.
        The key's hash alone says which child to take at each level, so it can lie in one place only. A leaf hashes
        1 + 64 n bytes, a node 512: none passes for the other. A leaf's pairs: (hash of a key, hash of its value)."""
        key, value, siblings, pairs = proof
        bits, name, found = self.network.state_tree_bits, sha256(key), None if value is None else sha256(value)
        require(len(key) <= KEY_MAX and bits // 4 <= len(siblings) <= 64, "the key, or its path, has a wrong length")
        node = sha256(b"\x00", pairs) if pairs else bytes(32)
        for digit, others in reversed(list(zip(name.hex(), siblings, strict=False))):
            node = sha256(others[: (place := 32 * int(digit, 16))], node, others[place:])
        root = sha256(b"hansa/state", bytes([bits]), node)
        require(root == self.blocks[index].state_root, "the state proof does not lead to the block's state")
        leaf = {pairs[at : at + 32]: pairs[at + 32 : at + 64] for at in range(0, len(pairs), 64)}
        require(len(pairs) == 64 * len(leaf) and ascending(list(leaf)), "the state tree's leaf is malformed")
        require(leaf.get(name) == found, "the state holds something else under the key")
        return value

    def read_body(self, data: bytes) -> Any:
        """The transaction's id, which is its hash; its name in words; sender, request id and expiry; its calls."""
        require(len(data) <= BODY_MAX, "the transaction is too large")
        network_id, sender, request_id, expires_at_ms, _, calls = decode(data, BODY, "the transaction's body")
        require(network_id == self.network.network_id, "the transaction is for another network")
        tx_id = sha256(b"hansa/tx", data)
        name = f"Transaction {tx_id.hex()} of {shown(sender)} (request {shown(request_id)})"
        return tx_id, name, (sender, request_id, expires_at_ms), calls

def read_network(genesis: bytes) -> Network:
    """Return what the genesis file says, and the hash that names it (over all of it but the addresses)."""
    try:
        file = tomllib.loads(genesis.decode("utf-8"), parse_float=unhex)  # a float is no hex either: refused
        name, rows = file["network"]["name"], file.get("principals", [])
        members = [[row["id"], row["role"], unhex(row["voting_key"]), unhex(row["tls_key"])] for row in file["members"]]
        principals = sorted([row["id"], sorted(map(unhex, row["keys"])), row.get("threshold", 1)] for row in rows)
        tables = [PARAMETERS | file.get("parameters", {}), file.get("contracts", {})]
        tables = json.loads(json.dumps(tables, sort_keys=True))  # maps are encoded in the order of their keys
        definition = encode(["hansa/genesis", name, members, principals, *tables])
        decode(definition, [str, str, ([str, str, 32, 32],), ([str, (32,), int],), dict, dict], "the definition")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        wrong = "a value of another kind" if isinstance(error, TypeError | AttributeError) else error
        raise Refused(f"the genesis file is no network.toml; wrong or missing in it: {wrong}") from error
    bits, retention_ms = tables[0]["state_tree_bits"], tables[0]["retention_ms"]
    right = tables[0].keys() == PARAMETERS.keys() and {type(value) for value in tables[0].values()} == {int}
    validators = [[row[0], row[2]] for row in members if row[1] == "validator"]
    require(right and bits in range(4, 25, 4) and distinct(validators), "the genesis file's parameters or validators")
    return Network(f"{name}-{sha256(definition).hex()[:12]}", sha256(definition), validators, bits, retention_ms)

def read_anchor(file: bytes, network: Network) -> Anchor:
    """Return the recovery in a file that every survivor it names has signed; whom it names, its header says too."""
    try:
        said = json.loads(file)
        header = decode(unhex(said["header"]), HEADER, "the recovery block's header")
        block = [[HEADER, (bytes,), (int,)], object]
        kept = decode(unhex(said["kept"]), block, "the kept block") if said["kept"] else None
        validators = [[row["id"], unhex(row["voting_key"])] for row in said["survivors"]]
        signed, view = {row["member"]: row for row in said["signatures"]}, said["view"]
        digests = {"recovery": sha256(b"hansa/header", encode(header))}
        digests |= {"kept": sha256(b"hansa/header", encode(kept[0][0]))} if kept else {}
        require(header[0] == network.network_id and header[4] == "@recovery", "it is of another network")
        require(kept is None or header[2] == digests["kept"], "the kept block is not the one below")
        listed = encode([[name, "validator", key] for name, key in validators])
        require(distinct(validators) and header[8] == sha256(b"hansa/members", listed), "its header names others")
        for name, key in validators:
            for what, digest in digests.items():
                vote = encode(["hansa/vote", header[0], 2, view, header[1] - (what == "kept"), digest])
                signing.VerifyKey(key).verify(vote, unhex(signed[name][what]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError,
            exceptions.CryptoError) as error:
        raise Refused(f"an anchor is no recovery file that all its survivors signed: {shown(str(error))}") from error
    return Anchor(header[1], digests["recovery"], digests.get("kept", b""), validators)

def decode(data: bytes, form: Any, what: str, nested_max: int = NESTED_MAX) -> Any:
    """Return the value of exactly this form of which `data` is the one encoding that `encode` makes.
    For Python, True is an integer; here it is none. Lengths are believed only as far as bytes follow."""
    reader = msgpack.Unpacker(max_buffer_size=PACK_MAX, max_array_len=nested_max, max_map_len=nested_max, max_ext_len=0)
    def read(form: Any) -> Any:
        if isinstance(form, list):
            return [read(part) for part, _ in zip(form, range(reader.read_array_header()), strict=True)]
        if isinstance(form, tuple):
            return [read(form[0]) for _ in range(reader.read_array_header())]
        value = reader.unpack()
        right = isinstance(value, bytes) and len(value) == form if isinstance(form, int) else isinstance(value, form)
        require(right and (type(value) is not bool or form is object), "a value has a wrong type or length")
        return value
    try:
        reader.feed(data)
        value = read(form)
        require(encode(value) == data, "it is not the canonical encoding of its value")
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise Refused(f"{what} is malformed: {error or type(error).__name__}") from error
    return value

def merkle_root(leaf: bytes, path: list[Any]) -> bytes:
    """The root of the RFC 6962 tree where `leaf` is at the lower end of `path`; leaves and nodes hash apart."""
    node = sha256(b"\x00", leaf)
    for side, other in path:
        require(side in (0, 1), "a side is 0 or 1")
        node = sha256(b"\x01", node, other) if side else sha256(b"\x01", other, node)
    return node

def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)
def distinct(validators: list[Any]) -> bool:  # neither an id nor a key votes twice, and somebody does
    return len({name for name, _ in validators}) == len({key for _, key in validators}) == len(validators) > 0
def state_key(*parts: str | int) -> bytes:
    return b"".join(b"\x03" + part.to_bytes(8) if isinstance(part, int) else
                    b"\x02" + part.encode().replace(b"\x00", b"\x00\x01") + b"\x00\x00" for part in parts)
def named(key: bytes) -> str:  # a state key in words, ["settlement", "accounts", "ACC-1"], where they say all of it
    parts = [int.from_bytes(number) if number else text.replace(b"\x00\x01", b"\x00").decode("utf-8", "replace")
             for text, number in re.findall(rb"(?s)\x02((?:[^\x00]|\x00\x01)*)\x00\x00|\x03(.{8})", key)]
    return shown(parts) if state_key(*parts) == key else key.hex()
def ascending(items: list[Any]) -> bool: return items == sorted(set(items))
def encode(value: Any) -> bytes: return bytes(msgpack.packb(value))  # each value in its shortest form
def sha256(*parts: bytes) -> bytes: return hashlib.sha256(b"".join(parts)).digest()
def shown(value: Any) -> str: return json.dumps(value, default=bytes.hex)  # escapes what could fool a terminal
def unhex(text: str) -> bytes: return bytes.fromhex(text)
def utc(ms: int) -> str: return (datetime.fromtimestamp(0, UTC) + timedelta(0, 0, 0, ms)).isoformat(" ", "milliseconds")

def main(arguments: list[str] | None = None) -> int:
    """Print what a pack proves; return 0, or 1 when it is refused. Wrong use exits with 2, a full output with 3."""
    parser = argparse.ArgumentParser(prog="hansa-verify", description="Judge an evidence pack of a Hansa ledger.")
    parser.add_argument("pack", type=argparse.FileType("rb"), help="the evidence pack")
    parser.add_argument("--genesis", type=argparse.FileType("rb"), required=True, help="the network's network.toml")
    parser.add_argument("--anchor", type=argparse.FileType("rb"), action="append", default=[], metavar="FILE",
                        help="a recovery file that you trust, from a source of your own")
    parser.add_argument("--checkpoint", metavar="HEIGHT:DIGEST", help="a later block, known from another source")
    parser.add_argument("--expect", metavar="KIND:SUBJECT", help="refuse a pack that proves anything else")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if options.checkpoint is not None and not re.fullmatch("[0-9]{1,16}:[0-9a-f]{64}", options.checkpoint):
        parser.error("--checkpoint is written HEIGHT:DIGEST, the digest as 64 lower-case hex digits")
    pack, genesis = options.pack.read(PACK_MAX + 1), options.genesis.read()
    try:
        anchors = [file.read(PACK_MAX) for file in options.anchor]
        network = read_network(genesis)
        for anchor in anchors:
            read_anchor(anchor, network)
    except Refused as refusal:
        parser.error(str(refusal))
    try:
        proof = verify(pack, genesis, options.checkpoint, options.expect, anchors)
        document = {"accepted": True, **proof._asdict(), "blocks": [block._asdict() for block in proof.blocks]}
        claim, *blocks = proof.proven
        lines = [f"PROVEN {proof.kind}:{proof.subject}", claim, *proof.details, *blocks, "ASSUMED", *proof.assumed]
    except Refused as refusal:
        document, lines = {"accepted": False, "reason": str(refusal)}, [f"REFUSED: {refusal}"]
    try:
        print(shown(document) if options.json else "\n".join(lines), flush=True)
    except OSError as error:  # what is still in Python's buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # then the reader has enough (… | head -1), the verdict stands
            parser.exit(3, f"hansa-verify: the verdict could not be written: {error.strerror}\n")
    return 0 if document["accepted"] else 1

if __name__ == "__main__":
    raise SystemExit(main())
