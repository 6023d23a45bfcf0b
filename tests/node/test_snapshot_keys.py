"""How many keys a snapshot's manifest names is certified by nobody: its chunks alone prove it."""

from pathlib import Path

import msgspec
import pytest

from consensus.codec import encode
from node.errors import InvalidFrame
from node.snapshot import Manifest, SnapshotFolder, adoption_bytes
from node.wire import Chunk, FetchSnapshot, SnapshotOffer
from tests.node.idle_clock import idle_clock
from tests.node.test_snapshot import due, judged, opened
from tests.node.test_snapshot_gathering import Joiner, Made, Offered, Question, Server, everything

__all__ = ["everything", "idle_clock"]

LIES = [0, 2**50]
"""Too few: the disk has no room for what is taken over. Too many: no disk has it."""


def miscounted(offered: Offered, keys: int) -> Manifest:
    """The manifest with another number of keys; all else in it is genuine."""
    return msgspec.structs.replace(
        offered.manifest, content=msgspec.structs.replace(offered.manifest.content, keys=keys)
    )


def copied(offered: Offered, path: Path, manifest: Manifest) -> SnapshotFolder:
    """The snapshot's chunks under another manifest."""
    folder = SnapshotFolder(path)
    folder.create()
    folder.write_manifest(encode(manifest))
    for index in range(len(manifest.content.chunks)):
        folder.write_chunk(index, offered.folder.chunk(index) or b"")
    return folder


@pytest.mark.parametrize("keys", LIES)
def test_keys_that_nobody_proved_are_refused_by_who_judges_a_whole_snapshot(
    keys: int, everything: Made, tmp_path: Path
) -> None:
    folder = copied(everything.new, tmp_path / "lie", miscounted(everything.new, keys))
    with pytest.raises(InvalidFrame, match=rf"snapshot_corrupt.*lie: .* {keys} keys"):
        judged(folder, everything.ledger)
    judged(copied(everything.new, tmp_path / "genuine", everything.new.manifest), everything.ledger)


@pytest.mark.parametrize("keys", LIES)
def test_a_snapshot_with_keys_that_nobody_proved_is_not_taken_over(
    keys: int, everything: Made, tmp_path: Path
) -> None:
    """The room on the disk was asked for by the number that the manifest names."""
    config = everything.ledger.network
    database, store = opened(tmp_path / "joiner", config)
    store.initialise(everything.ledger.executor.genesis(), never_voted=False)
    folder = copied(everything.new, tmp_path / "lie", miscounted(everything.new, keys))
    asked: list[int] = []
    assert due(database, folder.path, config, lambda needed_bytes, what: asked.append(needed_bytes)) is None
    assert asked == []
    folder = copied(everything.new, tmp_path / "genuine", everything.new.manifest)
    assert due(database, folder.path, config, lambda needed_bytes, what: asked.append(needed_bytes)) is not None
    assert asked == [adoption_bytes(everything.new.manifest.content)]
    database.close()


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize("resumed", [False, True])
async def test_whoever_offers_keys_that_its_chunks_do_not_hold_is_named_and_another_is_asked(
    resumed: bool, everything: Made, tmp_path: Path
) -> None:
    """Two liars outnumber the honest one, their manifest proves itself, and so does each of their chunks."""
    new, told = everything.new, list[bool]()
    lying = miscounted(new, 7)

    async def serve(message: Question) -> object:
        if isinstance(message, FetchSnapshot):
            return SnapshotOffer(0, 4, lying.content.digest, encode(lying))
        return Chunk(0, new.folder.chunk(message.index))

    if resumed:
        copied(new, tmp_path / "joining", lying).drop_chunk(1)
    joiner = Joiner(everything.ledger, tmp_path / "joining", a=serve, b=serve)
    assert not await joiner.gather(on_fetching=told.append)
    assert joiner.reports == {"a": "snapshot_corrupt", "b": "snapshot_corrupt"}
    assert told == [True, False]
    assert not joiner.folder.path.exists()
    joiner.links.peers["c"] = Server(new)
    assert await joiner.gather()
    assert joiner.whole() == 4
