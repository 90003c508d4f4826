"""PyTorch's files as archives: zips whose members or headers lie, and files that are cut off, are refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from minibert import zips
from minibert.checkpoint import pickles, pytorch
from minibert.errors import CheckpointError
from torch_files import ONE, SIX, legacy, only, pickled, refused, storage, tensor, value, zipped


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for content in (b"", b"P", b"PK\x03", b"\x89HDF", b"{}"):
        path.write_bytes(content)
        refused(path, "do not begin like a PyTorch file")
    path.write_bytes(b"\x80")
    refused(path, "malformed")
    path.write_bytes(pickle.dumps({"weight": 1}))
    refused(path, "is a pickle but not PyTorch's")
    zipped(path, b"\x80\x02N.")
    refused(path, "holds no state dict")
    path.write_bytes(b"PK\x03\x04")
    refused(path, "zip directory cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bert_model.ckpt.index", b"")
    refused(path, "is a zip archive with 0 data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    refused(path, "is a zip archive with 2 data.pkl")
    refused(tmp_path, "cannot read")
    refused(tmp_path / "missing", "cannot read: No such file")


def test_a_big_endian_zip_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "a.bin", pickled(x=tensor()), byteorder=b"big"), "not little-endian")
    assert pytorch.read(zipped(tmp_path / "b.bin", pickled(x=tensor()), byteorder=b"little")).entries


def test_a_pickle_or_directory_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(zipped(tmp_path / "a.bin", b"\x80\x02" + b"]" * pickles.LIMIT), "its pickle has 1048578 bytes")
    path = zipped(tmp_path / "b.bin", pickled(x=tensor()))
    monkeypatch.setattr(zips, "LIMIT", 64)
    refused(path, "its directory says it has .* bytes, not under 64")


def test_compressed_encrypted_or_doubled_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(x=tensor()))
        archive.writestr("archive/data/0", bytes(10_000_000))  # a bomb of ten kilobytes
    refused(path, "is compressed or encrypted")
    zipped(path, pickled(x=tensor()))
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # the flag of the first local header
    path.write_bytes(raw)
    refused(path, "is compressed or encrypted")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(x=tensor()))
        with pytest.warns(UserWarning, match="Duplicate name"):
            for _ in range(2):
                archive.writestr("archive/data/0", SIX)
    refused(path, "overlaps another or is there twice")


def test_names_of_members_are_never_paths(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(SIX)
    key = f"../../../..{outside}"
    path = zipped(tmp_path / "a.bin", pickled(x=tensor(stored=storage(key))), {key: bytes(24)})
    assert not only(path).any()  # the member's bytes, not those of the file that it is called
    assert outside.read_bytes() == SIX and len(list(tmp_path.iterdir())) == 2


def test_a_wrong_checksum_is_found_when_the_tensor_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.bin", pickled(x=tensor()))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(SIX, SIX[:-1] + b"\x01"))
    entry = pytorch.read(path).entries["x"]
    for _ in range(2):
        with pytest.raises(CheckpointError, match="tensor 'x': its CRC-32 is wrong"):
            entry.stored()
    path.write_bytes(raw.replace(value("x"), value("y"), 1))
    refused(path, "data.pkl: its CRC-32 is wrong")


def fields(raw: bytes) -> dict[str, int]:
    """Where the fields of the last member's headers lie."""
    local, central, end = raw.rindex(b"PK\x03\x04"), raw.rindex(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    return {
        "local magic": local, "local method": local + 8, "local name length": local + 26,
        "local extra length": local + 28, "local name": local + 30, "version": central + 6, "flags": central + 8,
        "method": central + 10, "compressed size": central + 20, "size": central + 24, "name": central + 46,
        "offset": central + 42, "directory size": end + 12, "directory offset": end + 16,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local magic": b"PK\x07\x08"}, "its header is not that of the directory"),
        ({"local name length": b"\xff\xff"}, "its header is not that of the directory"),
        ({"local name length": b"\x0d\x00"}, "its header is not that of the directory"),
        ({"local extra length": b"\xff\xff"}, "ends at byte"),
        ({"local extra length": b"\x04\x00"}, "its CRC-32 is wrong"),
        ({"local name": b"b"}, "its header is not that of the directory"),
        ({"size": b"\xff\xff\xff\x00", "compressed size": b"\xff\xff\xff\x00"}, "ends at byte"),
        ({"size": b"\x17\x00\x00\x00"}, "is compressed or encrypted"),
        ({"method": b"\x08\x00"}, "is compressed or encrypted"),
        ({"local method": b"\x08\x00"}, "is compressed or encrypted"),
        ({"offset": b"\x00\x00\x00\x00"}, "overlaps|header is not that"),
        ({"offset": b"\xff\xff\x00\x00"}, "its header at byte"),
        ({"offset": b"\xff\xff\xff\xff"}, "its header at byte"),
        ({"directory offset": b"\xff\xff\x00\x00"}, "its header at byte|header is not that"),
        ({"directory size": b"\xff\xff\xff\xff"}, "zip directory cannot be read"),
        ({"directory size": b"\x01\x00\x00\x00"}, "zip directory cannot be read"),
        ({"version": b"\xff\x00"}, "zip directory cannot be read"),
        ({"flags": b"\x00\x08", "name": b"\xff"}, "zip directory cannot be read"),
    ],
)
def test_a_zip_whose_headers_lie_is_refused(changes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.bin", pickled(x=tensor()))
    raw = bytearray(path.read_bytes())
    for name, new in changes.items():
        place = fields(bytes(raw))[name]
        raw[place : place + len(new)] = new
    path.write_bytes(raw)
    refused(path, message)


def test_members_may_not_overlap(tmp_path: Path) -> None:
    """Else a directory of a megabyte names one storage ten thousand times, with a checksum of each to compute."""
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(x=tensor()))
        archive.writestr("archive/data/0", SIX)
        first, second = (archive.getinfo(f"archive/{name}") for name in ("data.pkl", "data/0"))
        first.file_size = first.compress_size = second.header_offset + 40
    refused(path, "overlaps another or is there twice")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    for whole in (zipped(path, pickled(x=tensor())).read_bytes(), legacy(path, ONE).read_bytes()):
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            refused(path, "again|give another file")
