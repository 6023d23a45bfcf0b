"""The chain of headers: each follows its parent, and each was decided by the members of its height.

Invariant: nothing that the store says is believed. The members of height 1 come out of the network's definition;
those of height h + 1 are believed when their hash stands in header h, which the members of h have certified.
Where a snapshot was joined the headers between two changes of the members are not here: then the members carry
over the gap, for every change of them is here with its header and certificate.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec

from consensus.members import Members
from consensus.messages import VoteKind
from node.config import NetworkConfig
from node.ledger import BlockBody, Header, HeadRecord, members_hash
from node.store.database import Reader
from node.store.layout import body_key, number
from node.store.reading import read_body, stored
from node.verification.report import Progress, differs, require

Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]


class Link(msgspec.Struct, frozen=True):
    """One decided height that is proven: its header, its head record, and its body where that is here."""

    header: Header
    head: HeadRecord
    body: BlockBody | None
    decided_by: Members

    @property
    def height(self) -> int:
        """The block's height."""
        return self.header.height


class Chain:
    """The head records of one store, ascending, each judged by those before it."""

    def __init__(
        self,
        rows: Reader,
        network: NetworkConfig,
        genesis: HeadRecord,
        first_block: int,
        verify: Verify,
        progress: Progress,
    ) -> None:
        """`genesis` is what the network's definition makes; from `first_block` on every body has to be here."""
        self._rows = rows
        self._network = network
        self._genesis = genesis
        self._first_block = first_block
        self._verifier = network.recoveries.verifier(network.network_id, verify)
        self._progress = progress
        self.voting_keys: dict[str, set[bytes]] = {}
        """Every voting key that a member has had, by its id, as far as the chain was read."""
        self.gaps = 0
        """How many headers are not here, because a snapshot was joined."""

    def links(self, head_height: int) -> Iterator[Link]:
        """Yield every decided height from 1 to `head_height` that is here; raise StoreError for the first wrong."""
        before = self._start()
        changes = self._scan_changes()
        change = next(changes, None)
        for key, data in self._rows.scan(b"h" + number(1), b"i"):
            require(len(key) == 9, "a head record has a key of another length", key)
            height = int.from_bytes(key[1:], "big")
            self._progress.where = f"block {height}"
            require(height <= head_height, f"a head record lies above the head, {head_height}", key)
            link = self._link(key, stored(data, HeadRecord, f"head record of block {height}"), height, before)
            if change is not None and change < height:
                raise differs("members changed here, says the index, and nothing else does", b"l" + number(change))
            changed = link.head.validators != before.validators
            require(changed == (change == height), "the index of members' changes is wrong", b"l" + number(height))
            if changed:
                change = next(changes, None)
            before = link.head
            yield link
        self._progress.where = "the chain of blocks"
        require(before.height == head_height, f"the head is {head_height}, its last head record {before.height}")
        require(change is None, "members changed above the head, says the index", b"l" + number(change or 0))

    def _start(self) -> HeadRecord:
        """Genesis, as the network's definition makes it and as the store has it."""
        self._progress.where = "genesis"
        key = b"h" + number(0)
        data = self._rows.get(key)
        require(data is not None, "its head record is missing", key)
        found = stored(data or b"", HeadRecord, "head record of genesis")
        require(found == self._genesis, "it is not that of the network definition", key)
        self._note_keys(found)
        return found

    def _link(self, key: bytes, head: HeadRecord, height: int, before: HeadRecord) -> Link:
        """The decided height of `head`, proven by `before`, the head record below it that is here."""
        header, body = self._header(height, head)
        certificate = head.certificate
        require(
            (header.network, header.height) == (self._network.network_id, height) and header.digest == head.digest,
            "the header is that of another block",
            key,
        )
        if before.height == height - 1:
            require(header.parent == before.digest, "it does not follow the block before it", key)
            require(header.time_ms > before.time_ms, "it is not later than the block before it", key)
        else:
            left_out = self._network.recoveries.passed_over(height - 1, range(before.height + 1))
            require(left_out is None, "the recovery that is trusted here is missing below it", key)
            require(height < self._first_block, f"the head records after block {before.height} are missing", key)
            self.gaps += height - 1 - before.height
        members = before.members
        objection = self._network.recoveries.objection(height, head.digest, header.proposer)
        require(not objection, objection, key)
        require(
            certificate is not None
            and (certificate.height, certificate.digest) == (height, head.digest)
            and self._verifier.certificate(certificate, VoteKind.COMMIT, members),
            "the certificate is not one of the members of this height",
            key,
        )
        require(
            (head.height, head.time_ms, head.state_root) == (height, header.time_ms, header.state_root)
            and certificate is not None
            and certificate.view <= head.start_view < 2**63,
            "the head record differs from the header or its certificate",
            key,
        )
        require(
            members_hash(head.members) == header.members_hash,
            "the members of the next height are not those that the header names",
            key,
        )
        self._note_keys(head)
        decided_by = self._network.recoveries.deciders(height, head.digest, members)
        return Link(header, head, body, decided_by or members)

    def _header(self, height: int, head: HeadRecord) -> tuple[Header, BlockBody | None]:
        """The header of `height` and its body, where it is here; the body is compared with its tx_root."""
        body = read_body(self._rows, height, head.digest)
        key = b"k" + number(height)
        data = self._rows.get(key)
        kept = None if data is None else stored(data, Header, f"header of block {height}")
        if body is not None:
            require(kept is None or kept == body.header, "its header, kept apart, is another one", key)
            return body.header, body
        require(height < self._first_block, "its body is missing", body_key(height, head.digest))
        if kept is None:
            raise differs("its body was pruned and its header is missing", key)
        return kept, None

    def _scan_changes(self) -> Iterator[int]:
        for key, value in self._rows.scan(b"l", b"m"):
            require(len(key) == 9 and not value, "an entry of the index of members' changes cannot be read", key)
            yield int.from_bytes(key[1:], "big")

    def _note_keys(self, head: HeadRecord) -> None:
        for validator in head.validators:
            self.voting_keys.setdefault(validator.id, set()).add(validator.voting_key)
