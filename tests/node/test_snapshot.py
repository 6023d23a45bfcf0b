"""Snapshots: what is made is what was certified, and nothing else is taken: every mutation has its own reason.

More than 500 lines because every mutation is one of the same snapshot, which is made here.
"""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from consensus.codec import encode
from consensus.members import Members, Validator
from consensus.messages import Certificate, VoteKind, vote_bytes
from contracts.membership import Membership
from node.config import NetworkConfig
from node.errors import InvalidFrame, NotFound, StoreError
from node.executor import Executor, request_of
from node.keys import SigningKey
from node.ledger import HeadRecord, members_hash, sha256
from node.runtime.chain import deciders
from node.signatures import verify
from node.snapshot import (
    Adoption,
    Cut,
    Manifest,
    SnapshotFolder,
    SnapshotTooLarge,
    cut,
    cutting,
    finished_heights,
    make_snapshot,
    open_chunk,
    pending_adoption,
    read_manifest,
    remove_leftovers,
    remove_snapshot,
    spill,
    verify_manifest,
    verify_snapshot,
)
from node.snapshot import manifest as limits
from node.snapshot.chunks import COMPRESSION, content_head, row_bytes
from node.snapshot.manifest import ChunkEntry, level_of
from node.state import ExecutedBlock
from node.state_tree import StateTree
from node.store import Database, LevelDatabase, Store
from node.store.layout import META_ADOPTING
from node.tree_records import pairs_of
from tests.node.ledger_world import ENGINE, Ledger, network, transfer

KEYS = {bank: SigningKey.generate() for bank in ("bank-a", "bank-b", "bank-c", "bank-d", "bank-e")}


def signed_network(**parameters: int) -> NetworkConfig:
    """The test network with voting keys that can sign."""
    plain = network("testnet", **parameters)
    members = tuple(msgspec.structs.replace(member, voting_key=KEYS[member.id].public) for member in plain.members)
    return msgspec.structs.replace(plain, members=members)


def certified(config: NetworkConfig, executed: ExecutedBlock, members: Members) -> Certificate:
    """A quorum of real signatures."""
    message = vote_bytes(config.network_id, VoteKind.COMMIT, 0, executed.height, executed.digest)
    signatures = tuple(
        (at, KEYS[members.id(at)].sign(message)) for at in range(members.n - members.quorum, members.n)
    )
    return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, signatures)


class SignedLedger(Ledger):
    """A ledger whose blocks carry certificates that prove them."""

    def decide(self, executed: ExecutedBlock) -> HeadRecord:
        """The block is applied."""
        certificate = certified(self.network, executed, self.store.head.members)
        head = self.store.apply(executed, certificate, start_view=0)
        self.executor.advance(executed, self.store.snapshot())
        return head


def made(ledger: Ledger, root: Path, cut: Cut = cut) -> SnapshotFolder:
    """A snapshot of the ledger's head, made without pauses."""
    config = ledger.network
    bits = config.parameters.state_tree_bits
    steps = make_snapshot(ledger.store.snapshot(), config.network_id, config.genesis_hash, bits, root, cut)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            folder: SnapshotFolder = end.value
            return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SignedLedger]:
    opened = SignedLedger(tmp_path / "data", signed_network())
    opened.open_accounts("A", "B", funds=1_000)
    for number in range(1, 4):
        opened.settle(opened.transaction("bank-a", transfer("A", "B", 10, number)))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SignedLedger, SnapshotFolder]]:
    """A ledger with its snapshot, which nobody changes."""
    path = tmp_path_factory.mktemp("kept")
    opened = SignedLedger(path / "data", signed_network())
    opened.open_accounts("A", "B", funds=1_000)
    for number in range(1, 4):
        opened.settle(opened.transaction("bank-a", transfer("A", "B", 10, number)))
    yield opened, made(opened, path / "snapshots")
    opened.close()


def judged(folder: SnapshotFolder, ledger: Ledger) -> None:
    """The whole snapshot proves itself to whoever knows the network."""
    config = ledger.network
    verify_snapshot(folder, config.network_id, config.genesis_hash, config.validators, 8, verify)


def judged_manifest(manifest: Manifest, ledger: Ledger) -> None:
    config = ledger.network
    verify_manifest(manifest, config.network_id, config.genesis_hash, config.validators, 8, verify)


def test_a_snapshot_proves_itself_and_holds_exactly_the_state(ledger: SignedLedger, tmp_path: Path) -> None:
    folder = made(ledger, tmp_path / "snapshots")
    judged(folder, ledger)
    content = read_manifest(folder.manifest_bytes()).content
    rows: dict[bytes, bytes] = {}
    buckets: dict[str, bytes | None] = {}
    for index in range(len(content.chunks)):
        opened = open_chunk(folder.chunk(index) or b"", content, index)
        rows.update(opened.rows)
        buckets.update(opened.buckets)
    view = ledger.store.snapshot()
    assert rows == dict(view.scan(b"", b"\xff"))
    assert all(view.bucket(name) == record for name, record in buckets.items())
    assert sum(len(pairs_of(record or b"")) for record in buckets.values()) == len(list(view.pairs()))
    assert (content.height, content.keys) == (4, len(rows))
    assert content.header == view.block(4).body.header
    assert finished_heights(tmp_path / "snapshots") == [4]


def test_two_makers_make_the_same_whatever_the_memory_and_the_compression(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_manifest(made(ledger, tmp_path / "one").manifest_bytes())
    monkeypatch.setattr(cutting, "COMPRESSION", 9)
    monkeypatch.setattr(spill.Spill.__init__, "__defaults__", (200, 0, "part"))
    second = read_manifest(made(ledger, tmp_path / "two").manifest_bytes())
    assert first.content.digest == second.content.digest
    assert not list((tmp_path / "two").rglob("part-*"))


def test_a_larger_state_is_cut_into_more_chunks_of_about_the_target(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES_TARGET", 300)
    monkeypatch.setattr(cutting, "CHUNK_BYTES_TARGET", 300)
    folder = made(ledger, tmp_path / "snapshots")
    judged(folder, ledger)
    content = read_manifest(folder.manifest_bytes()).content
    assert len(content.chunks) > 4
    assert sum(chunk.subtrees for chunk in content.chunks) == 16**content.level


def test_the_level_grows_with_the_state_and_keeps_subtrees_small() -> None:
    target = limits.CHUNK_BYTES_TARGET
    assert [level_of(8, size) for size in (0, 16 * target, 16 * target + 1, 10**12)] == [1, 1, 2, 2]
    assert level_of(24, 0) == 3
    assert level_of(24, 10**12) == 4
    assert level_of(4, 10**12) == 1


def test_a_state_that_is_not_the_certified_one_is_never_offered(ledger: SignedLedger, tmp_path: Path) -> None:
    ledger.store._database.write([(b"s" + b"\x02stray\x00\x00", b"\x01")])
    with pytest.raises(StoreError, match="corrupt_state_tree"):
        made(ledger, tmp_path / "snapshots")
    assert finished_heights(tmp_path / "snapshots") == []
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_subtree_that_no_chunk_can_hold_makes_none(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "CHUNK_ROWS_MAX", 1)
    monkeypatch.setattr(cutting, "SPLITS_MAX", 0)
    with pytest.raises(SnapshotTooLarge):
        made(ledger, tmp_path / "snapshots")
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_whoever_stops_in_the_middle_leaves_nothing_that_counts(ledger: SignedLedger, tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    config = ledger.network
    steps = make_snapshot(ledger.store.snapshot(), config.network_id, config.genesis_hash, 8, root)
    next(steps)
    assert finished_heights(root) == []
    steps.close()
    assert list(root.iterdir()) == []
    (root / "4.unfinished").mkdir()
    (root / "4.unfinished" / "0000.chunk").write_bytes(b"torn")
    remove_leftovers(root)
    assert list(root.iterdir()) == []
    made(ledger, root)
    remove_snapshot(root, 4)
    assert list(root.iterdir()) == []


# --- manifests ---------------------------------------------------------------------------------------------------


def changed_members(ledger: SignedLedger) -> None:
    """Block 5 gives bank-e the place of bank-d; block 6 is decided by the new list, and gives it back."""
    first = ledger.store.head.members
    other = Members((*first.validators[:3], Validator("bank-e", KEYS["bank-e"].public)))
    change = ledger.build(ledger.transaction("bank-a"))
    assert change is not None
    # What the contract would do: the header names the list that it leads to.
    header = msgspec.structs.replace(change.header, members_hash=members_hash(other))
    body = msgspec.structs.replace(change.body, header=header)
    proposal = msgspec.structs.replace(change.proposal, header=header)
    change = msgspec.structs.replace(change, members=other, body=body, proposal=proposal, digest=header.digest)
    ledger.decide(change)
    block = ledger.build(ledger.transaction("bank-a"))
    assert block is not None
    ledger.decide(block)


def test_the_changes_of_members_lead_from_genesis_to_the_height(ledger: SignedLedger, tmp_path: Path) -> None:
    changed_members(ledger)
    ledger.settle(ledger.transaction("bank-a", transfer("A", "B", 1, 9)))
    folder = made(ledger, tmp_path / "snapshots")
    judged(folder, ledger)
    manifest = read_manifest(folder.manifest_bytes())
    assert [change.header.height for change in manifest.content.changes] == [5, 6]
    without = msgspec.structs.replace(
        manifest,
        content=msgspec.structs.replace(manifest.content, changes=manifest.content.changes[1:]),
        certificates=manifest.certificates[1:],
    )
    with pytest.raises(InvalidFrame, match="snapshot_foreign"):
        judged_manifest(without, ledger)


Change = Callable[[Manifest], Manifest]


def content_with(**fields: object) -> Change:
    return lambda manifest: msgspec.structs.replace(
        manifest, content=msgspec.structs.replace(manifest.content, **fields)
    )


def header_with(**fields: object) -> Change:
    def change(manifest: Manifest) -> Manifest:
        header = msgspec.structs.replace(manifest.content.header, **fields)
        return content_with(header=header)(manifest)

    return change


def certificate_with(**fields: object) -> Change:
    def change(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(
            manifest, certificates=(msgspec.structs.replace(manifest.certificate, **fields),)
        )

    return change


MUTATIONS: list[tuple[Change, str, str]] = [
    (content_with(format=2), "snapshot_corrupt", "format 2"),
    (content_with(network="other-0123456789ab"), "snapshot_foreign", "belongs to other"),
    (content_with(genesis_hash=sha256(b"other")), "snapshot_foreign", "genesis"),
    (header_with(network="other-0123456789ab"), "snapshot_foreign", "belongs to other"),
    (header_with(height=5), "snapshot_corrupt", "another block"),
    (header_with(state_root=sha256(b"other")), "snapshot_corrupt", "another block"),
    (content_with(validators=(Validator("bank-a", bytes(32)),)), "snapshot_corrupt", "validators"),
    (content_with(tree_bits=12), "snapshot_corrupt", "12 bits"),
    (content_with(level=3), "snapshot_corrupt", "level 3"),
    (content_with(subtrees=bytes(32 * 16)), "snapshot_corrupt", "do not lead"),
    (content_with(subtrees=bytes(32 * 15)), "snapshot_corrupt", "15 subtrees"),
    (content_with(chunks=(ChunkEntry(15, 1, bytes(32)),)), "snapshot_corrupt", "every subtree once"),
    (certificate_with(signatures=()), "snapshot_foreign", "not certified"),
    (certificate_with(kind=VoteKind.PREPARE), "snapshot_foreign", "not certified"),
    (certificate_with(view=1), "snapshot_foreign", "not certified"),
    (certificate_with(height=3), "snapshot_corrupt", "another block"),
    (certificate_with(digest=sha256(b"other")), "snapshot_corrupt", "another block"),
    (
        lambda manifest: msgspec.structs.replace(manifest, certificates=manifest.certificates * 2),
        "snapshot_corrupt",
        "more or fewer",
    ),
]


@pytest.mark.parametrize(("change", "code", "said"), MUTATIONS)
def test_a_manifest_that_says_something_else_is_refused_with_its_reason(
    kept: tuple[SignedLedger, SnapshotFolder], change: Change, code: str, said: str
) -> None:
    ledger, folder = kept
    manifest = read_manifest(folder.manifest_bytes())
    judged_manifest(manifest, ledger)
    with pytest.raises(InvalidFrame, match=said) as refused:
        judged_manifest(change(manifest), ledger)
    assert refused.value.code == code


def test_no_bit_of_a_manifest_can_be_flipped(kept: tuple[SignedLedger, SnapshotFolder]) -> None:
    ledger, folder = kept
    data = folder.manifest_bytes()
    digest = read_manifest(data).content.digest
    chance = random.Random(7)
    for bit in chance.sample(range(8 * len(data)), 300):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            manifest = read_manifest(bytes(flipped))
            judged_manifest(manifest, ledger)
        except InvalidFrame:
            continue
        # What the certificate does not cover is the table of chunks: under its own name, and then no chunk fits it.
        assert manifest.content.digest != digest
        assert manifest.content.subtrees == read_manifest(data).content.subtrees


# --- chunks ------------------------------------------------------------------------------------------------------


def retold(manifest: Manifest, plain: bytes) -> tuple[Manifest, bytes]:
    """The liar's best: a manifest whose table names what the liar sends as chunk 0, and that chunk."""
    entry = ChunkEntry(manifest.content.chunks[0].subtrees, len(plain), sha256(plain))
    return content_with(chunks=(entry, *manifest.content.chunks[1:]))(manifest), zlib.compress(plain, COMPRESSION)


def rows_of(data: bytes) -> list[tuple[bytes, bytes]]:
    plain = zlib.decompress(data)
    decoded: list[list[list[bytes]]] = msgspec.msgpack.decode(plain)
    return [(key, value) for key, value in decoded[0]]


def plain_of(rows: list[tuple[bytes, bytes]]) -> bytes:
    return content_head(len(rows)) + b"".join(row_bytes(key, value) for key, value in rows)


ROW_LIES: list[Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]]] = [
    lambda rows: rows[1:],
    lambda rows: [*rows[:-1], (rows[-1][0], rows[-1][1] + b"\x00")],
    lambda rows: [*rows[:-1], (rows[-1][0] + b"\x00", rows[-1][1])],
    lambda rows: rows[::-1],
    lambda rows: [rows[0], *rows],
    lambda rows: [],
]


@pytest.mark.parametrize("lie", ROW_LIES)
def test_a_chunk_with_other_rows_is_refused_even_under_a_manifest_that_names_it(
    kept: tuple[SignedLedger, SnapshotFolder],
    lie: Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]],
) -> None:
    ledger, folder = kept
    manifest = read_manifest(folder.manifest_bytes())
    data = folder.chunk(0) or b""
    rows = rows_of(data)
    assert plain_of(rows) == zlib.decompress(data)
    lying, chunk = retold(manifest, plain_of(lie(rows)))
    judged_manifest(lying, ledger)
    with pytest.raises(InvalidFrame, match="snapshot_corrupt"):
        open_chunk(chunk, lying.content, 0)


def test_chunks_that_are_torn_bombs_or_others_are_refused_before_they_cost_memory(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "CHUNK_BYTES_TARGET", 300)
    folder = made(ledger, tmp_path / "snapshots")
    content = read_manifest(folder.manifest_bytes()).content
    data = folder.chunk(0) or b""
    plain = zlib.decompress(data)
    bomb = zlib.compress(bytes(20 * 1024 * 1024), 1)
    for hostile in (
        b"",
        b"not zlib",
        data[:-1],
        data + b"\x00",
        zlib.compress(plain + b"\x00", COMPRESSION),
        zlib.compress(plain[:-1], COMPRESSION),
        bomb,
        bytes(limits.CHUNK_FILE_BYTES_MAX + 1),
        folder.chunk(1) or b"",
    ):
        with pytest.raises(InvalidFrame, match="snapshot_corrupt"):
            open_chunk(hostile, content, 0)
    many = b"\x91\xdd" + (2**31).to_bytes(4, "big")
    lying, chunk = retold(read_manifest(folder.manifest_bytes()), many)
    with pytest.raises(InvalidFrame, match="claims more"):
        open_chunk(chunk, lying.content, 0)


def test_a_snapshot_on_disk_is_refused_by_the_name_of_its_directory(ledger: SignedLedger, tmp_path: Path) -> None:
    folder = made(ledger, tmp_path / "snapshots")
    whole = folder.chunk_path(0).read_bytes()
    folder.chunk_path(0).write_bytes(whole[:-3])
    with pytest.raises(InvalidFrame, match=r"snapshots/4: chunk 0"):
        judged(folder, ledger)
    folder.drop_chunk(0)
    with pytest.raises(InvalidFrame, match="is missing"):
        judged(folder, ledger)


# --- adoption ----------------------------------------------------------------------------------------------------


class Dying(LevelDatabase):
    """A disk that takes `lives` more writes; the next one never happens, or is the last thing that does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lives = -1
        self.after = False
        self.writes = 0

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        if self.lives == 0 and not self.after:
            raise KeyboardInterrupt
        super().write(rows)
        self.writes += 1
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1


def opened(path: Path, config: NetworkConfig) -> tuple[Dying, Store]:
    database = Dying(path)
    return database, Store(path, config.network_id, config.genesis_hash, open_database=lambda _: database)


def due(
    database: Database,
    joining: Path,
    config: NetworkConfig,
    require_room: Callable[[int, str], None] = lambda needed_bytes, what: None,
) -> Adoption | None:
    named = (config.network_id, config.genesis_hash, config.validators)
    return pending_adoption(database, joining, *named, 8, verify, require_room)


def state_of(store: Store) -> tuple[object, ...]:
    view = store.snapshot()
    return (
        view.head,
        dict(view.scan(b"", b"\xff")),
        dict(store.rows(b"t", b"u")),
        dict(store.rows(b"d", b"e")),
        view.requests_due(0, 2**60, 1_000),
        view.header(view.head.height),
        view.first_block,
    )


@pytest.mark.slow
def test_an_adoption_that_dies_at_any_write_is_finished_at_the_next_start(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "CHUNK_BYTES_TARGET", 600)
    monkeypatch.setattr("node.snapshot.adoption.ROWS_A_BATCH", 7)
    config = ledger.network
    joining = made(ledger, tmp_path / "snapshots").path
    expected = state_of(ledger.store)[:6]
    genesis = ledger.executor.genesis()
    deaths, finished, lives = 0, False, 0
    while not finished:
        for after in (False, True):
            path = tmp_path / f"joiner-{lives}-{after}"
            database, store = opened(path, config)
            store.initialise(genesis, never_voted=True)
            adoption = due(database, joining, config)
            assert adoption is not None
            database.lives, database.after = lives, after
            try:
                adoption.perform(request_of)
                finished = True
            except KeyboardInterrupt:
                deaths += 1
            database.close()
            database, store = opened(path, config)
            adoption = due(database, joining, config)
            if store.head.height == 4:
                assert adoption is None
                assert database.get(META_ADOPTING) is None
            else:
                assert store.head.height == 0
                assert adoption is not None
                adoption.perform(request_of)
            database.close()
            database, store = opened(path, config)
            assert state_of(store)[:6] == expected
            assert store.first_block == 5
            # The never-voted marker is neither lost nor won.
            assert store.memory().never_voted
            executor = fresh_executor(config)
            executor.open(store.snapshot())
            database.close()
        lives += 1
    assert deaths > 20


def fresh_executor(config: NetworkConfig) -> Executor:
    return Executor(config, ENGINE, Membership)


def test_the_blocks_that_changed_the_members_are_here_after_an_adoption(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    """Without them this node could neither prove a block to an auditor nor make a snapshot for the next one."""
    changed_members(ledger)
    config = ledger.network
    joining = made(ledger, tmp_path / "snapshots").path
    database, store = opened(tmp_path / "joiner", config)
    store.initialise(ledger.executor.genesis(), never_voted=False)
    adoption = due(database, joining, config)
    assert adoption is not None
    adoption.perform(request_of)
    database.close()
    database, store = opened(tmp_path / "joiner", config)
    ours, theirs = store.snapshot(), ledger.store.snapshot()
    # Block 6 is the head and a change itself: it was decided by those whom block 5 named.
    assert ours.member_changes() == theirs.member_changes() == (5, 6)
    assert [ours.head_at(height) for height in (5, 6)] == [theirs.head_at(height) for height in (5, 6)]
    assert [ours.header(height) for height in (5, 6)] == [theirs.header(height) for height in (5, 6)]
    assert deciders(ours) == deciders(theirs) == ours.head_at(5).members
    with pytest.raises(NotFound, match="block_pruned"):
        ours.block(6)
    database.close()


def test_what_lies_in_the_joining_directory_is_adopted_only_when_it_is_whole_newer_and_ours(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    config = ledger.network
    folder = made(ledger, tmp_path / "snapshots")
    database, store = opened(tmp_path / "joiner", config)
    store.initialise(ledger.executor.genesis(), never_voted=False)
    assert due(database, folder.path, config) is not None
    assert due(database, tmp_path / "nothing", config) is None
    other = signed_network(block_calls_max=77)
    assert (
        pending_adoption(database, folder.path, other.network_id, other.genesis_hash, other.validators, 8, verify)
        is None
    )
    whole = folder.chunk_path(0).read_bytes()
    folder.chunk_path(0).write_bytes(whole[:-1] + b"\x00")
    assert due(database, folder.path, config) is None
    # Whoever fetches it judges it again; in a backup nothing is removed.
    assert folder.chunk_path(0).read_bytes() == whole[:-1] + b"\x00"
    folder.chunk_path(0).write_bytes(whole)
    # A node that is as far as the snapshot keeps what it has.
    assert due(ledger.store._database, folder.path, config) is None
    adoption = due(database, folder.path, config)
    assert adoption is not None
    adoption.perform(request_of)
    assert due(database, folder.path, config) is None
    database.close()


def test_a_begun_adoption_whose_files_are_gone_says_what_to_do(ledger: SignedLedger, tmp_path: Path) -> None:
    config = ledger.network
    folder = made(ledger, tmp_path / "snapshots")
    database, store = opened(tmp_path / "joiner", config)
    store.initialise(ledger.executor.genesis(), never_voted=False)
    adoption = due(database, folder.path, config)
    assert adoption is not None
    database.lives = 2
    with pytest.raises(KeyboardInterrupt):
        adoption.perform(request_of)
    database.lives = -1
    folder.remove()
    with pytest.raises(StoreError, match="adoption_incomplete") as told:
        due(database, folder.path, config)
    assert "joining/" in told.value.entry.action
    database.close()


def test_after_an_adoption_the_ledger_goes_on_and_a_duplicate_is_known(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    config = ledger.network
    again = ledger.transaction("bank-a", transfer("A", "B", 10, 70), request="once")
    ledger.settle(again)
    joining = made(ledger, tmp_path / "snapshots").path
    joiner = SignedLedger(tmp_path / "joiner", config)
    adoption = due(joiner.store._database, joining, config)
    assert adoption is not None
    adoption.perform(request_of)
    joiner.close()
    joiner = SignedLedger(tmp_path / "joiner", config)
    assert joiner.balance("B") == ledger.balance("B") == 1_040
    assert joiner.executor.admission(again, ledger.now_ms) == 5
    place = joiner.store.locate(again.tx_id)
    assert place is not None
    assert place[0] == 5
    for number in range(80, 83):
        ledger.settle(ledger.transaction("bank-a", transfer("A", "B", 1, number)))
    joiner.follow_store(ledger)
    assert joiner.store.head.state_root == ledger.store.head.state_root
    tree = StateTree(8, joiner.store.snapshot().bucket, joiner.store.snapshot().pairs())
    assert tree.root == ledger.store.head.state_root
    # It makes the same snapshots as everybody else.
    theirs = read_manifest(made(ledger, tmp_path / "theirs").manifest_bytes())
    ours = read_manifest(made(joiner, tmp_path / "ours").manifest_bytes())
    assert encode(ours.content) == encode(theirs.content)
    joiner.close()
