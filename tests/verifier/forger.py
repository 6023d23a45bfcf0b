"""Forged packs: good ones changed in one way. The verifier may accept none.

Those of the first way are changed as files are damaged. All others carry the right hash at their end, for a forger
computes it anew; what a forger cannot do is sign for the members. Where the test has their keys it uses them, for
votes that members may really have given: for another view, height, network, or only to prepare.
"""

import copy
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import msgpack

from consensus.codec import encode
from consensus.messages import VoteKind, vote_bytes
from node.keys import SigningKey
from node.ledger import sha256
from tests.node.evidence_world import VOTING
from tests.verifier.packs import EPOCHS, MadePack

CHANGES, BLOCKS, LINKS, ITEM = 3, 4, 5, 6
STRANGER = SigningKey(b"nobody at all".ljust(32, b"."))

Way = Callable[["Forger", MadePack], bytes | None]
Place = tuple[int, ...]


def opened(data: bytes) -> list[Any]:
    """The pack as lists, without its seal."""
    rows: list[Any] = msgpack.unpackb(data)
    return rows[:-1]


def sealed(rows: list[Any]) -> bytes:
    """The pack of these rows with the hash that belongs to them."""
    return encode([*rows, sha256(encode(rows))])


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Where something stands in nested lists: every value and every list, the whole one too."""
    yield here
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*here, index))


def found(rows: Any, place: Place) -> Any:
    """What stands there."""
    for index in place:
        rows = rows[index]
    return rows


def put(rows: Any, place: Place, value: Any) -> None:
    """Now that stands there."""
    found(rows, place[:-1])[place[-1]] = value


class Forger:
    """Chooses by a seed what to change; a way returns None where a pack offers nothing to it."""

    def __init__(self, packs: list[MadePack], seed: int) -> None:
        self.packs = packs
        self.random = random.Random(seed)

    # --- as files are damaged ----------------------------------------------------------------------------

    def damaged(self, pack: MadePack) -> bytes | None:
        """Bits flipped, bytes lost, repeated, added or from another pack; the hash is not computed anew."""
        data = bytearray(pack.data)
        at = self.random.randrange(len(data))
        match self.random.randrange(7):
            case 0 | 1 | 2:
                data[at] ^= 1 << self.random.randrange(8)
            case 3:
                del data[at]
            case 4:
                data.insert(at, data[at])
            case 5:
                data += self.random.randbytes(self.random.randrange(1, 40))
            case _:
                other = self.random.choice(self.packs).data
                data[at:] = other[min(at, len(other) - 1) :]
        return bytes(data)

    # --- every field -------------------------------------------------------------------------------------

    def changed_value(self, pack: MadePack) -> bytes | None:
        """One value is another of its type: a bit of bytes, a letter of a text, a near or far integer."""
        rows = opened(pack.data)
        place = self._place(rows, lambda value: not isinstance(value, list))
        put(rows, place, self._near(found(rows, place)))
        return sealed(rows)

    def _near(self, value: Any) -> Any:
        if isinstance(value, bytes) and value:
            data = bytearray(value)
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            return bytes(data)
        if isinstance(value, bytes):
            return b"\x00"
        if isinstance(value, str):
            at = self.random.randrange(len(value))
            return value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
        if isinstance(value, int):
            others = (value + 1, value - 1, -value - 1, value ^ 1 << 40, 2**63, 2**64 - 1, -(2**63))
            return self.random.choice(others)
        return b""

    def changed_type(self, pack: MadePack) -> bytes | None:
        """One value is of another type, also of one that Python takes for equal."""
        rows = opened(pack.data)
        place = self._place(rows, lambda value: True)
        value = found(rows, place)
        kinds: list[Any] = [None, True, False, 0, 1, "", b"", [], [value], {}, {"a": value}]
        if isinstance(value, bytes):
            kinds += [value.decode("latin-1"), list(value[:8])]
        if value in (0, 1):
            kinds += [bool(value)] * 8
        kinds = [other for other in kinds if type(other) is not type(value)]
        if not place:
            return sealed([self.random.choice(kinds)])
        put(rows, place, self.random.choice(kinds))
        return sealed(rows)

    def changed_length(self, pack: MadePack) -> bytes | None:
        """A list or bytes lost something, got something twice, or in another order."""
        rows = opened(pack.data)
        place = self._place(rows, lambda value: isinstance(value, list | bytes) and len(value) > 0)
        value = found(rows, place)
        at, other = self.random.randrange(len(value)), self.random.randrange(len(value))
        match self.random.randrange(5):
            case 0:
                value = value[:at] + value[at + 1 :]
            case 1:
                value = value[:at] + value[at : at + 1] + value[at:]
            case 2:
                value = value[:at]
            case 3:
                value = value + value
            case _:
                low, high = min(at, other), max(at, other)
                middle = value[low + 1 : high]
                value = value[:low] + value[high : high + 1] + middle + value[low : low + 1] + value[high + 1 :]
        if not place:
            return sealed(value)
        put(rows, place, value)
        return sealed(rows)

    def encoded_otherwise(self, pack: MadePack) -> bytes | None:
        """The same values in another than the shortest MessagePack form."""
        rows = opened(pack.data)
        rows.append(sha256(encode(rows)))
        return _written(rows, self._place(rows, lambda value: value is not None))

    # --- parts of other packs ----------------------------------------------------------------------------

    def part_of_another(self, pack: MadePack) -> bytes | None:
        """One value or list stands where another pack has another: paths, proofs, headers, signatures, entries."""
        rows, other = opened(pack.data), opened(self.random.choice(self.packs).data)
        common = [place for place in places(other) if place and self._has(rows, place)]
        place = self.random.choice(common)
        put(rows, place, found(other, place))
        return sealed(rows)

    @staticmethod
    def _has(rows: Any, place: Place) -> bool:
        for index in place:
            if not isinstance(rows, list) or index >= len(rows):
                return False
            rows = rows[index]
        return True

    def section_of_another(self, pack: MadePack) -> bytes | None:
        """Changes, blocks, links or item are those of another pack; the kind too, sometimes."""
        rows, other = opened(pack.data), opened(self.random.choice(self.packs).data)
        for section in self.random.sample((2, CHANGES, BLOCKS, LINKS, ITEM), self.random.randrange(1, 3)):
            rows[section] = other[section]
        return sealed(rows)

    # --- who signed --------------------------------------------------------------------------------------

    def too_few_signatures(self, pack: MadePack) -> bytes | None:
        """A certificate lacks one or more signatures."""
        rows = opened(pack.data)
        signatures = self._certified(rows)[1][1]
        for _ in range(self.random.randrange(1, len(signatures) + 1)):
            del signatures[self.random.randrange(len(signatures))]
        return sealed(rows)

    def too_many_signatures(self, pack: MadePack) -> bytes | None:
        """A certificate has a genuine signature beyond the quorum."""
        rows = opened(pack.data)
        certified = self._certified(rows)
        certified[1][1] = self._votes(certified[0], self._epoch(certified[0]), surplus=1)
        return sealed(rows)

    def counted_twice(self, pack: MadePack) -> bytes | None:
        """One member's genuine signature stands for two: under its place twice, or under another's."""
        rows = opened(pack.data)
        signatures = self._certified(rows)[1][1]
        first, second = self.random.sample(range(len(signatures)), 2)
        signatures[first][1] = signatures[second][1]
        if self.random.randrange(2):
            signatures[first][0] = signatures[second][0]
        return sealed(rows)

    def other_votes(self, pack: MadePack) -> bytes | None:
        """Genuine signatures of the right members: to prepare, for another view, height or network, another tag."""
        rows = opened(pack.data)
        header, certificate = self._certified(rows)[:2]
        network, height, digest = header[0], header[1], sha256(b"hansa/header" + encode(header))
        view = certificate[0]
        message = self.random.choice(
            (
                vote_bytes(network, VoteKind.PREPARE, view, height, digest),
                vote_bytes(network, VoteKind.COMMIT, view + 1, height, digest),
                vote_bytes(network, VoteKind.COMMIT, view, height + 1, digest),
                vote_bytes(network[:-1] + "z", VoteKind.COMMIT, view, height, digest),
                vote_bytes(network, VoteKind.COMMIT, view, height, sha256(digest)),
                encode(["hansa/other", network, 2, view, height, digest]),
                digest,
            )
        )
        certificate[1] = self._votes(header, self._epoch(header), message=message)
        return sealed(rows)

    def strangers_sign(self, pack: MadePack) -> bytes | None:
        """Some signatures of a forged header are of a key that is no member's."""
        rows = opened(pack.data)
        certified = self._certified(rows)
        certified[0][3] += 1
        votes = self._votes(certified[0], self._epoch(certified[0]))
        message = _vote_message(certified[0])
        votes[self.random.randrange(len(votes))][1] = STRANGER.sign(message)
        certified[1] = [0, votes]
        return sealed(rows)

    def another_epoch_signs(self, pack: MadePack) -> bytes | None:
        """A block carries the genuine votes of the members of another epoch than its height's."""
        rows = opened(pack.data)
        certified = self._certified(rows)
        right = self._epoch(certified[0])
        wrong = self.random.choice([epoch for epoch in EPOCHS if epoch != right])
        certified[1][1] = self._votes(certified[0], wrong)
        return sealed(rows)

    def epochs_rearranged(self, pack: MadePack) -> bytes | None:
        """A change is left out, is there twice, in another order, too late, or leads to another list."""
        rows, source = opened(pack.data), opened(self.random.choice(self.packs).data)
        changes: list[Any] = rows[CHANGES]
        if not changes:
            rows[CHANGES] = source[CHANGES]
            return sealed(rows) if source[CHANGES] else None
        at = self.random.randrange(len(changes))
        match self.random.randrange(6):
            case 0:
                del changes[at]
            case 1:
                changes.insert(at, changes[at])
            case 2:
                changes.reverse()
                if len(changes) < 2:
                    return None
            case 3:
                epoch = self.random.choice(EPOCHS)
                changes[at][2] = [[bank, VOTING[bank].public] for bank in epoch]
            case 4:
                changes[at][2].append(["bank-z", STRANGER.public])
            case _:
                changes[at][2].reverse()
        return sealed(rows)

    # --- what the item says ------------------------------------------------------------------------------

    def item_forged(self, pack: MadePack) -> bytes | None:
        """What a forger of this kind of item would try."""
        rows = opened(pack.data)
        forge: Callable[[list[Any]], None] = {
            "transaction": self._forge_transaction,
            "state": self._forge_state,
            "absence": self._forge_state,
            "not_executed": self._forge_not_executed,
            "statement": self._forge_statement,
        }[pack.kind]
        forge(rows)
        return sealed(rows)

    def _forge_transaction(self, rows: list[Any]) -> None:
        """Another way to the root, a node as a leaf, a leaf as a node, or other content."""
        item = rows[ITEM]
        leaf, path = self.random.choice((0, 2)), 1
        path += leaf
        match self.random.randrange(6):
            case 0 if item[path]:
                step = self.random.choice(item[path])
                step[0] = 1 - step[0]
            case 1:
                item[path].append([self.random.randrange(2), self.random.randbytes(32)])
            case 2 if item[path]:
                item[path].pop(self.random.randrange(len(item[path])))
            case 3 if item[path]:  # an inner node in place of the leaf
                side, other = item[path].pop(0)
                node = sha256(b"\x00" + item[leaf])
                item[leaf] = node + other if side else other + node
            case 4:  # the leaf's hash in place of the leaf
                item[leaf] = sha256(b"\x00" + item[leaf])
            case _:  # another amount, as if the transaction had said so
                item[0] = item[0].replace(b"amount", b"Amount")

    def _forge_state(self, rows: list[Any]) -> None:
        """Present said absent and the reverse, another value, another place, a shorter or longer way."""
        self._forge_proof(rows[ITEM][0], rows)

    def _forge_proof(self, proof: list[Any], rows: list[Any]) -> None:
        match self.random.randrange(8):
            case 0:
                proof[1] = None if proof[1] is not None else b"\xc0"
                rows[2] = {"state": "absence", "absence": "state"}.get(rows[2], rows[2])
            case 1:  # the pair is taken out of the leaf
                hashed = sha256(proof[0])
                pairs = [proof[3][at : at + 64] for at in range(0, len(proof[3]), 64)]
                proof[3] = b"".join(pair for pair in pairs if pair[:32] != hashed)[64 * (proof[1] is None) :]
                proof[1] = None
                rows[2] = {"state": "absence"}.get(rows[2], rows[2])
            case 2:  # the leaf as an inner node's part: one level less
                others = proof[2].pop()
                proof[3] = (others + sha256(b"\x00" + proof[3]))[: 64 * 8]
            case 3:
                proof[2].append(bytes(480))
            case 4:
                proof[2].reverse()
                proof[3] += bytes(64)
            case 5:  # an empty leaf, where the place is said to be empty
                proof[1], proof[3] = None, b""
            case 6:  # absence shown in another key's place
                proof[0] = proof[0][:-3] + b"X\x00\x00"
            case _:
                proof[1] = encode(["bank-a", "USD", 10**9, 0, 1, b"", [], True])
                proof[3] = proof[3][:32] + sha256(proof[1]) + proof[3][64:]

    def _forge_not_executed(self, rows: list[Any]) -> None:
        """The body of another, another expiry, or another trace of its request."""
        item = rows[ITEM]
        body = msgpack.unpackb(item[0])
        match self.random.randrange(5):
            case 0:
                body[3] += self.random.choice((-60_001, 60_000, 10_000_000, -(10**12)))
            case 1:
                body[2] = self.random.choice(("never", "twice", "2-5", "none"))
            case 2:
                body[1] = "bank-b"
            case 3:
                body[5][0][2]["amount"] += 1
            case _:
                return self._forge_proof(item[1], rows)
        if encode(body) == item[0]:
            body[4] = "each"
        item[0] = encode(body)
        return None

    def _forge_statement(self, rows: list[Any]) -> None:
        """An entry left out, added, moved, or of another amount, with balances that add up; the ends exchanged."""
        item = rows[ITEM]
        entries = [msgpack.unpackb(data) for data in item[2]]
        choice = self.random.randrange(6) if entries else 5
        at = self.random.randrange(len(entries)) if entries else 0
        if choice == 0:
            del entries[at]
        elif choice == 1:
            entries.insert(at, list(entries[at]))
        elif choice == 2:
            entries[at][4] += 5
        elif choice == 3:
            entries[at][2] += 1
        elif choice == 4:
            item[0], item[1] = item[1], item[0]
        else:
            return self._forge_proof(item[self.random.randrange(2)], rows)
        for earlier, entry in pairwise(entries):
            entry[1], entry[8] = earlier[1] + 1, earlier[8] + entry[4]
        item[2] = [encode(entry) for entry in entries]
        return None

    # --- the checkpoint ----------------------------------------------------------------------------------

    def links_broken(self, pack: MadePack) -> bytes | None:
        """The headers to the checkpoint lack one, have one twice, one more, or one that says something else."""
        rows = opened(pack.data)
        links: list[Any] = rows[LINKS]
        if not links:
            source = [other for other in self.packs if opened(other.data)[LINKS]]
            rows[LINKS] = opened(self.random.choice(source).data)[LINKS]
            return sealed(rows)
        at = self.random.randrange(len(links))
        match self.random.randrange(5):
            case 0:
                del links[at]
            case 1:
                links.insert(at, copy.deepcopy(links[at]))
            case 2:
                links[at][3] += 1
            case 3:
                last = copy.deepcopy(links[-1])
                last[1], last[2] = last[1] + 1, sha256(b"hansa/header" + encode(links[-1]))
                links.append(last)
            case _:
                links.clear()
        return sealed(rows)

    # --- choices -----------------------------------------------------------------------------------------

    def _place(self, rows: list[Any], fits: Callable[[Any], bool]) -> Place:
        return self.random.choice([place for place in places(rows) if fits(found(rows, place))])

    def _certified(self, rows: list[Any]) -> list[Any]:
        """One of the signed blocks: [header, certificate, …]."""
        block: list[Any] = self.random.choice(rows[CHANGES] + rows[BLOCKS])
        return block

    def _epoch(self, header: list[Any]) -> tuple[str, ...]:
        """Who decides the header's height: the ledger of the packs changes them in blocks 4 and 7."""
        height = header[1]
        return EPOCHS[0] if height <= 4 else EPOCHS[1] if height <= 7 else EPOCHS[2]

    def _votes(
        self, header: list[Any], epoch: tuple[str, ...], surplus: int = 0, message: bytes | None = None
    ) -> list[Any]:
        """The votes of a quorum of the epoch's members, and of `surplus` more."""
        quorum = (len(epoch) + (len(epoch) - 1) // 3) // 2 + 1
        signed = _vote_message(header) if message is None else message
        return [[place, VOTING[epoch[place]].sign(signed)] for place in range(quorum + surplus)]


def _vote_message(header: list[Any]) -> bytes:
    digest = sha256(b"hansa/header" + encode(header))
    return vote_bytes(header[0], VoteKind.COMMIT, 0, header[1], digest)


def _written(value: Any, odd: Place | None) -> bytes:
    """MessagePack of nested lists; what stands at `odd` is written longer than it need be."""
    if isinstance(value, list):
        short: bytes = msgpack.Packer().pack_array_header(len(value))
        head = b"\xdd" + len(value).to_bytes(4, "big") if odd == () else short
        parts = [_written(part, odd[1:] if odd and odd[0] == index else None) for index, part in enumerate(value)]
        return head + b"".join(parts)
    if odd != ():
        return encode(value)
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4, "big") + value
    if isinstance(value, str):
        return b"\xdb" + len(value.encode()).to_bytes(4, "big") + value.encode()
    number: bytes = value.to_bytes(8, "big", signed=True)
    return b"\xd3" + number


WAYS: dict[str, Way] = {
    "damaged file": Forger.damaged,
    "another value": Forger.changed_value,
    "another type": Forger.changed_type,
    "lost, repeated, moved": Forger.changed_length,
    "encoded otherwise": Forger.encoded_otherwise,
    "part of another pack": Forger.part_of_another,
    "section of another pack": Forger.section_of_another,
    "too few signatures": Forger.too_few_signatures,
    "too many signatures": Forger.too_many_signatures,
    "member counted twice": Forger.counted_twice,
    "votes for something else": Forger.other_votes,
    "signed by a stranger": Forger.strangers_sign,
    "signed by another epoch": Forger.another_epoch_signs,
    "changes of members forged": Forger.epochs_rearranged,
    "item forged": Forger.item_forged,
    "links broken": Forger.links_broken,
}
