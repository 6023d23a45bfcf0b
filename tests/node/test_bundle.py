"""A diagnostics bundle is read back as it was written; one that was made up is refused before it costs anything."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from node.errors import ConfigError
from node.runtime import bundle as bundles
from node.runtime.bundle import FORMAT, Manifest, PartEntry, read_bundle, write_bundle
from node.runtime.recorder import RecordedPart, Recording

MANIFEST = Manifest(FORMAT, 1, "bank-a", "net", "0.1.0", "digest", 30, "")
RECORDING = Recording((RecordedPart(0, 10, b"first"), RecordedPart(20, 10, b"second")), 30, "")


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


def manifest(**changes: object) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(MANIFEST, **changes))


def refused(tmp_path: Path, data: bytes) -> str:
    file = tmp_path / "bundle.zip"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_bundle(file)
    assert caught.value.code == "bundle_unreadable"
    return caught.value.message


def test_a_bundle_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "bundle.zip"
    file.write_bytes(write_bundle(MANIFEST, {"why.json": b"{}", "metrics.txt": b"hansa 1"}, RECORDING))
    found = read_bundle(file)
    assert found.parts == RECORDING.parts
    assert found.documents == {"why.json": b"{}", "metrics.txt": b"hansa 1"}
    assert found.manifest.member == "bank-a"
    assert any("keys" in sentence for sentence in found.manifest.left_out)


def test_a_document_that_is_too_large_is_replaced_by_its_size(tmp_path: Path) -> None:
    file = tmp_path / "bundle.zip"
    file.write_bytes(write_bundle(MANIFEST, {"why.json": b"x" * (bundles.DOCUMENT_BYTES_MAX + 1)}, RECORDING))
    assert b"left_out" in read_bundle(file).documents["why.json"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "manifest"),
        ({"manifest.json": b"[]"}, "manifest"),
        ({"manifest.json": b"[" * 100_000}, "manifest"),
        ({"manifest.json": manifest(format="hansa-diagnostics/9")}, "format"),
        ({"manifest.json": manifest(), "../../etc/passwd": b""}, "no bundle has"),
        ({"manifest.json": manifest(), "/etc/passwd": b""}, "no bundle has"),
        ({"manifest.json": manifest(), "recording/x.py": b""}, "no bundle has"),
        ({"manifest.json": manifest(parts=(PartEntry("recording/0000.bin", 0, 1),))}, "missing"),
        (
            {
                "manifest.json": manifest(
                    parts=(PartEntry("recording/0000.bin", 9, 1), PartEntry("recording/0001.bin", 3, 1))
                ),
                "recording/0000.bin": b"",
                "recording/0001.bin": b"",
            },
            "out of order",
        ),
        ({f"{chr(97 + n // 26)}{chr(97 + n % 26)}.json": b"" for n in range(600)}, ""),
    ],
)
def test_a_made_up_zip_is_refused(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    assert why in refused(tmp_path, zipped(files))


def huge_directory(data: bytes) -> bytes:
    return data[:-10] + struct.pack("<I", 1 << 30) + data[-6:]


def with_64_bit_record(data: bytes) -> bytes:
    return data[:-22] + b"PK\x06\x07" + bytes(16) + data[-22:]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"PK",
        lambda data: data[:-1],
        lambda data: data + b"comment",
        lambda data: data[: len(data) // 2] + data[len(data) // 2 + 9 :],
        huge_directory,
        with_64_bit_record,
    ],
)
def test_a_damaged_zip_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    assert refused(tmp_path, change(write_bundle(MANIFEST, {}, RECORDING)))


def test_a_bomb_is_refused_after_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "PART_BYTES_MAX", 1 << 20)
    bomb = zipped({"manifest.json": manifest(), "recording/0000.bin": bytes(1 << 22)})
    assert len(bomb) < 1 << 16
    assert "larger" in refused(tmp_path, bomb)
    many = zipped({"manifest.json": manifest(), **{f"recording/{n:04}.bin": bytes(1 << 19) for n in range(12)}})
    monkeypatch.setattr(bundles, "CONTENT_BYTES_MAX", 1 << 22)
    assert "larger" in refused(tmp_path, many)


def test_another_compression_is_refused(tmp_path: Path) -> None:
    assert "no bundle has" in refused(tmp_path, zipped({"manifest.json": manifest()}, zipfile.ZIP_LZMA))


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="bundle_unreadable"):
        read_bundle(tmp_path / "none")
    monkeypatch.setattr(bundles, "BUNDLE_BYTES_MAX", 100)
    assert "larger" in refused(tmp_path, bytes(200))
