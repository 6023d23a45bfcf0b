"""The diagnostics bundle as a file: one zip of JSON documents, the metrics, and the recording.

```
manifest.json        what this is: format, member, versions, the list of parts, what was left out
*.json               why, status, replica, members, links, versions, parameters, limits, store, evidence
metrics.txt          Prometheus text
recording/NNNN.bin   the parts of the recording (node.runtime.recording), oldest first
```

A bundle may come from anybody. `read_bundle` judges the zip's own directory before anything is unpacked, bounds
every file and their sum, takes no name but those above, and writes nothing to disk.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from node.errors import ConfigError
from node.runtime.recorder import RecordedPart, Recording

FORMAT: Final = "hansa-diagnostics/1"
BUNDLE_BYTES_MAX: Final = 32 * 1024 * 1024
CONTENT_BYTES_MAX: Final = 96 * 1024 * 1024
DOCUMENT_BYTES_MAX: Final = 2 * 1024 * 1024
PART_BYTES_MAX: Final = 80 * 1024 * 1024
FILES_MAX: Final = 512
_DIRECTORY_BYTES_MAX: Final = FILES_MAX * 256
_END_SIZE: Final = 22
_LOCATOR_SIZE: Final = 20
_MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"[a-z]{1,20}\.(json|txt)|recording/[0-9]{4}\.bin")
LEFT_OUT: Final = (
    "keys and passphrases",
    "transactions: their bytes, their arguments, the payloads of proposals (their lengths are in the recording)",
    "the contracts' state (also the key that a divergence names), receipts, events, and arguments in network.toml",
    "paths, listening addresses and the members' addresses (the text of a failed link may name one)",
    "the log: it stays in the node's own file",
)


class PartEntry(msgspec.Struct, frozen=True):
    """A part of the recording: its file, the number of its first input, and how many inputs it has."""

    file: str
    first: int
    inputs: int


class Manifest(msgspec.Struct, frozen=True):
    """What a bundle is. `consensus` is the digest of the consensus sources that made the recording.

    `inputs` is how many the replica had since its start; parts in between may have been dropped. `failure` is empty
    or says why the recorder stopped.
    """

    format: str
    made_at_ms: int
    member: str
    network: str
    version: str
    consensus: str
    inputs: int
    failure: str
    parts: tuple[PartEntry, ...] = ()
    left_out: tuple[str, ...] = LEFT_OUT


class Bundle(msgspec.Struct, frozen=True):
    """A bundle that was read: the manifest, the documents by name, and the recording's parts."""

    manifest: Manifest
    documents: dict[str, bytes]
    parts: tuple[RecordedPart, ...]


def write_bundle(manifest: Manifest, documents: Mapping[str, bytes], recording: Recording) -> bytes:
    """The bundle's bytes, at most BUNDLE_BYTES_MAX. A document that is too large is replaced by a note of its size.

    `documents` by file name. It takes a good part of a second for a full recording: call it in a thread.
    """
    entries = tuple(
        PartEntry(f"recording/{place:04}.bin", part.first, part.inputs)
        for place, part in enumerate(recording.parts[-(FILES_MAX // 2) :])
    )
    files = {_MANIFEST: msgspec.json.encode(msgspec.structs.replace(manifest, parts=entries)), **documents}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            if len(data) > DOCUMENT_BYTES_MAX:
                data = msgspec.json.encode({"left_out": f"{len(data)} bytes are too many"})
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        for entry, part in zip(entries, recording.parts[-(FILES_MAX // 2) :], strict=True):
            archive.writestr(zipfile.ZipInfo(entry.file), part.data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def read_bundle(path: Path) -> Bundle:
    """The bundle in the file `path`; raise ConfigError (`bundle_unreadable`) where there is none."""
    data = _read_file(path)
    files = _unpack(path, data)
    try:
        manifest = msgspec.json.decode(files.pop(_MANIFEST, b""), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(path, f"its manifest cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise _malformed(path, f"its format is {manifest.format[:40]!r}, this version reads {FORMAT!r}")
    parts: list[RecordedPart] = []
    for entry in manifest.parts:
        content = files.pop(entry.file, None)
        behind = parts[-1].first + parts[-1].inputs if parts else 0
        if content is None or entry.first < behind or entry.inputs < 0:
            raise _malformed(path, f"the part {entry.file[:40]!r} is missing or out of order")
        parts.append(RecordedPart(entry.first, entry.inputs, content))
    return Bundle(manifest, files, tuple(parts))


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(BUNDLE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError("bundle_unreadable", f"{path}: {error.strerror or error}") from error
    if len(data) > BUNDLE_BYTES_MAX:
        raise _malformed(path, f"it is larger than {BUNDLE_BYTES_MAX} bytes")
    return data


def _unpack(path: Path, data: bytes) -> dict[str, bytes]:
    """Every file of the zip by name; bounded before it is unpacked, and while it is."""
    # zipfile reads the whole directory at once: its length is looked at first. Ours ends without a comment, and
    # has no 64-bit record, which would speak of other lengths.
    end, locator = data[-_END_SIZE:], data[-_END_SIZE - _LOCATOR_SIZE : -_END_SIZE]
    plain = end[:4] == b"PK\x05\x06" and end[-2:] == b"\x00\x00" and locator[:4] != b"PK\x06\x07"
    if len(end) < _END_SIZE or not plain or int.from_bytes(end[12:16], "little") > _DIRECTORY_BYTES_MAX:
        raise _malformed(path, "it is no zip as `hansa why --bundle` writes it")
    files: dict[str, bytes] = {}
    left = CONTENT_BYTES_MAX
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                known = _NAME.fullmatch(info.filename) and info.filename not in files and len(files) < FILES_MAX
                if not known or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise _malformed(path, f"it holds a file {info.filename[:60]!r} that no bundle has")
                most = min(left, PART_BYTES_MAX if info.filename.endswith(".bin") else DOCUMENT_BYTES_MAX)
                with archive.open(info) as file:
                    content = file.read(most + 1)
                if len(content) > most:
                    raise _malformed(path, f"{info.filename} is larger than a bundle's file may be")
                left -= len(content)
                files[info.filename] = content
    except (zipfile.error, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        raise _malformed(path, str(error) or type(error).__name__) from error
    return files


def _malformed(path: Path, why: str) -> ConfigError:
    return ConfigError("bundle_unreadable", f"{path}: {why}")
