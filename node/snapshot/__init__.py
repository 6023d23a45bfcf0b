"""Snapshots: the whole state after one certified block, in files that a node can join from instead of replaying.

A snapshot is a directory: `manifest`, and chunks `0000.chunk`, `0001.chunk`, … The manifest leads from genesis
to the chunks: changes of members → validators of the height → certificate → header → state root → hashes of
subtrees → chunks. docs/snapshots.md describes every byte.
"""

from node.snapshot.adoption import Adoption, adoption_bytes, pending_adoption
from node.snapshot.apart import cut_apart
from node.snapshot.chunks import OpenedChunk, open_chunk
from node.snapshot.cutting import Cut, SnapshotTooLarge, cut
from node.snapshot.folder import SnapshotFolder, finished_heights, remove_leftovers, remove_snapshot
from node.snapshot.judging import read_manifest, require_keys, require_own_past, verify_manifest, verify_snapshot
from node.snapshot.making import make_snapshot
from node.snapshot.manifest import CHUNK_FILE_BYTES_MAX, CHUNKS_MAX, MANIFEST_BYTES_MAX, Content, Manifest

__all__ = [
    "CHUNKS_MAX",
    "CHUNK_FILE_BYTES_MAX",
    "MANIFEST_BYTES_MAX",
    "Adoption",
    "Content",
    "Cut",
    "Manifest",
    "OpenedChunk",
    "SnapshotFolder",
    "SnapshotTooLarge",
    "adoption_bytes",
    "cut",
    "cut_apart",
    "finished_heights",
    "make_snapshot",
    "open_chunk",
    "pending_adoption",
    "read_manifest",
    "remove_leftovers",
    "remove_snapshot",
    "require_keys",
    "require_own_past",
    "verify_manifest",
    "verify_snapshot",
]
