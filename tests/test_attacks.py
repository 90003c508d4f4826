"""Files made to do harm, through the commands that open them: each ends in one line, soon, with nothing run or written.

What each reader does with each kind of wrong byte stands in its own tests (test_checkpoint.py, test_tensorflow*.py,
test_pytorch*.py, test_archive.py), and what it does with a hundred thousand others in fuzz.py.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Done, assert_stopped, contents, make_checkpoint, minibert_in_process, write_mrpc
from minibert.checkpoint import conversion, huggingface, table
from minibert.checkpoint.protobuf import encode_varint, integer_field, message_field
from minibert.errors import CheckpointError
from torch_files import pickled, storage, tensor, zipped

MODEL, BIN, INDEX, DATA = "model.safetensors", "pytorch_model.bin", "x.ckpt.index", "x.ckpt.data-00000-of-00001"
SHARDS = "model.safetensors.index.json"
TERABYTE = 1 << 40
SECONDS, MEMORY = 20, 64 << 20  # for a command; the machine may have other work to do

Attack = Callable[[Path], Path]  # makes its files in a folder with config and vocabulary; what the command is given
ATTACKS: dict[str, tuple[Attack, str]] = {}  # and what the line says
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT in each format, in folders of these names, and data to train on."""
    root = tmp_path_factory.mktemp("originals")
    make_checkpoint(root / "hf", labels=("no", "yes"))
    for form in ("tensorflow", "torch"):
        conversion.convert(root / "hf", root / form, form)
    write_mrpc(root / "glue")
    for arguments in commands(root / "none", root, root / "target").values():
        minibert_in_process(*arguments)  # so that no attack is blamed for the memory of what they import
    return root


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that hangs, as a read of a pipe does, fails."""

    def late(*_: object) -> None:
        raise TimeoutError("still running")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(6 * SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def attack(said: str) -> Callable[[Attack], Attack]:
    def register(make: Attack) -> Attack:
        ATTACKS[make.__name__.replace("_", " ")] = make, said
        return make

    return register


def commands(checkpoint: Path, originals: Path, target: Path) -> dict[str, tuple[str | Path, ...]]:
    return {
        "inspect": ("inspect", checkpoint),
        "convert": ("convert", checkpoint, target, "--to", "torch"),
        "finetune": ("finetune", "mrpc", "--checkpoint", checkpoint, "--data-dir", originals / "glue",
                     "--output-dir", target, "--max-seq-length", "32"),
    }  # fmt: skip


def refused(done: Done, said: str) -> None:
    line = assert_stopped(done, 1)
    assert any(part in line for part in said.split("|")), line
    assert line.isprintable() and len(line) < 2000


# --- safetensors


def safetensors(folder: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    content = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    (folder / MODEL).write_bytes(content)
    return folder


@attack("do not hold the header")
def header_of_2_to_the_60(folder: Path) -> Path:
    return safetensors(folder, b"{}", 1 << 60)


@attack("not valid JSON")
def header_of_brackets(folder: Path) -> Path:
    return safetensors(folder, b'{"a":' + b"[" * 1_000_000)


@attack("'a49999' stands twice")
def key_twice_behind_50000_others(folder: Path) -> Path:
    keys = ",".join(f'"a{i}":0' for i in range(50_000))
    return safetensors(folder, f'{{{keys},"a49999":1}}'.encode())


@attack("stands twice")
def key_of_a_megabyte_twice(folder: Path) -> Path:
    return safetensors(folder, b'{"%s":0,"%s":0}' % (b"k" * 1_000_000, b"k" * 1_000_000))


@attack("unknown type")
def type_nested_deep(folder: Path) -> Path:
    entry = b'{"dtype":' + b"[" * 800 + b"]" * 800 + b',"shape":[],"data_offsets":[0,0]}'
    return safetensors(folder, b'{"x":' + entry + b"}")


@attack("its shape or offsets are not sizes")
def shape_without_elements_that_no_array_has(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [0, 1 << 61, 1 << 61], "data_offsets": [0, 0]}
    return safetensors(folder, json.dumps({"x": entry}).encode())


@attack("its name is no text|unknown type")
def names_with_lines_and_escapes(folder: Path) -> Path:
    entry = {"dtype": "F32\n\x1b[2J", "shape": [], "data_offsets": [0, 0]}
    return safetensors(folder, json.dumps({"x\ny\x1b[2J\ud800": entry}).encode())


# --- PyTorch


class Harm:
    """Unpickled, it makes the file `pwned` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def torch_zip(path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
    return path


@attack("refused: the file wants to call 'posix.system'")
def pickle_in_a_zip_that_calls(folder: Path) -> Path:
    return torch_zip(folder / BIN, pickle.dumps(Harm(), 2))


@attack("refused: the file wants to call 'posix.system'")
def pickle_in_the_legacy_form_that_calls(folder: Path) -> Path:
    (folder / BIN).write_bytes(LEGACY_MAGIC + pickle.dumps(Harm(), 2))
    return folder / BIN


@attack("do not hold the header")
def pickle_alone_that_calls(folder: Path) -> Path:
    (folder / BIN).write_bytes(pickle.dumps(Harm(), 4))
    return folder


@attack("is compressed or encrypted")
def pickle_that_is_deflated(folder: Path) -> Path:
    return torch_zip(folder / BIN, b"\x80\x02" + b"N0" * 1_000_000 + b".", zipfile.ZIP_DEFLATED)


# --- TensorFlow


HEADER = integer_field(1, 1) + message_field(3, integer_field(1, 1))


def bundle(folder: Path, *items: tuple[bytes, bytes], compress: bool = False) -> Path:
    (folder / INDEX).write_bytes(table.write_table([(b"", HEADER), *items], compress))
    (folder / DATA).write_bytes(b"")
    return folder / "x.ckpt"


def sealed(block: bytes) -> bytes:
    return block + b"\0" + table.masked_crc(block + b"\0").to_bytes(4, "little")


def place(offset: int, size: int) -> bytes:
    return encode_varint(offset) + encode_varint(size)


def table_of_one_block(folder: Path, block: bytes, index: bytes) -> Path:
    """A table whose index block is `block` itself, at the file's begin."""
    footer = (index + index).ljust(40, b"\0") + table.MAGIC
    (folder / INDEX).write_bytes(sealed(block) + footer)
    return folder / "x.ckpt"


@attack("a number of more than 64 bits")
def endless_varint_in_a_message(folder: Path) -> Path:
    return bundle(folder, (b"x", b"\x08" + b"\x80" * 100_000 + b"\0"))


@attack("keys out of order|an entry longer|ends within a number|no header|overlap")
def index_block_that_is_its_own_data(folder: Path) -> Path:
    entry = b"\0\1\2z"  # nothing shared, a key of one byte, a value of two: its own place
    size = len(entry) + 2 + 8
    return table_of_one_block(folder, entry + place(0, size) + struct.pack("<2L", 0, 1), place(0, size))


@attack("no header")
def table_without_entries(folder: Path) -> Path:
    (folder / INDEX).write_bytes(table.write_table([]))
    return folder / "x.ckpt"


@attack("a block outside the file")
def truncated_block(folder: Path) -> Path:
    whole = (bundle(folder).with_name(INDEX)).read_bytes()
    (folder / INDEX).write_bytes(whole[:10] + whole[-48:])
    return folder


@attack("does not have its checksum")
def wrong_checksum_of_a_block(folder: Path) -> Path:
    whole = bytearray((bundle(folder).with_name(INDEX)).read_bytes())
    whole[3] ^= 1
    (folder / INDEX).write_bytes(whole)
    return folder


@attack("is not that of a tensor")
def shape_of_500000_sides(folder: Path) -> Path:
    return bundle(folder, (b"x", integer_field(1, 1) + message_field(2, b"\x12\0" * 500_000)), compress=True)


@attack("is missing")
def tensor_of_500000_slices(folder: Path) -> Path:
    return bundle(folder, (b"x", integer_field(1, 1) + message_field(2, b"") + b"\x3a\0" * 500_000), compress=True)


@attack("there is no such file")
def shards_without_end(folder: Path) -> Path:
    path = bundle(folder, (b"x", integer_field(1, 1) + integer_field(3, 1 << 30)))
    header = integer_field(1, (1 << 31) - 1)
    entry = integer_field(1, 1) + integer_field(3, 1 << 30)
    (folder / INDEX).write_bytes(table.write_table([(b"", header), (b"x", entry)]))
    return path


# --- Google's zips


def google_zip(folder: Path, **contents: bytes) -> Path:
    path = folder / "google.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {INDEX: bytes(40) + table.MAGIC, **contents}.items():
            archive.writestr(name, content)
    return path


@attack("would unpack to")
def zip_bomb(folder: Path) -> Path:
    return google_zip(folder, **{"x.ckpt.data-00000-of-00001": bytes(60 << 20)})


@attack("is not of the size it says|lies over another file|Bad CRC-32")
def zip_bomb_that_gives_a_low_size(folder: Path) -> Path:
    path = google_zip(folder, **{"x.ckpt.data-00000-of-00001": bytes(60 << 20)})
    size = struct.pack("<L", 60 << 20)
    crc = struct.pack("<L", zlib.crc32(bytes(60 << 20)))
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", 50)).replace(crc, bytes(4)))
    return path


@attack("a block too small|outside the file|does not have its checksum|cut short")
def zip_with_paths(folder: Path) -> Path:
    outside = {
        "../pwned/vocab.txt": b"x",
        "/pwned/bert_config.json": b"{}",
        "..\\..\\pwned\\x.ckpt.data-00000-of-00001": b"",
    }
    return google_zip(folder, **outside)


# --- what points elsewhere


@attack("no file name|cannot")
def index_of_shards_that_names_a_path(folder: Path) -> Path:
    (folder / SHARDS).write_text(json.dumps({"weight_map": {"x": "../hf/" + MODEL}}))
    return folder


@attack("an index itself")
def index_of_shards_that_names_itself(folder: Path) -> Path:
    (folder / SHARDS).write_text(json.dumps({"weight_map": {"x": SHARDS}}))
    return folder


@attack("this shard is missing")
def index_of_shards_whose_shard_is_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / MODEL.replace("model", "part"))
    (folder / SHARDS).write_text(json.dumps({"weight_map": {"x": MODEL.replace("model", "part")}}))
    return folder


@attack("there is no such file")
def latest_checkpoint_elsewhere(folder: Path) -> Path:
    """A whole checkpoint lies where the file `checkpoint` points to, and is not to be read."""
    bundle(folder.parent, (b"x", integer_field(1, 1) + message_field(2, b"")))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{folder.parent}/x.ckpt"\n')
    return folder


@attack("names '..'")
def latest_checkpoint_above(folder: Path) -> Path:
    (folder / "checkpoint").write_text('model_checkpoint_path: "x/.."\n')
    return folder


@attack("there is no such file")
def link_to_itself(folder: Path) -> Path:
    (folder / MODEL).symlink_to(folder / MODEL)
    return folder / MODEL


@attack("holds no weights")
def link_to_itself_in_a_folder(folder: Path) -> Path:
    (folder / MODEL).symlink_to(folder / MODEL)
    return folder


# --- what is no file


@attack("there is no such checkpoint")
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / MODEL)
    return folder / MODEL


@attack("holds no weights")
def pipe_in_a_folder(folder: Path) -> Path:
    for name in (MODEL, SHARDS, BIN, "checkpoint", "other"):
        os.mkfifo(folder / name)
    return folder


@attack("there is no such checkpoint|no path, hub id")
def pipe_for_an_index(folder: Path) -> Path:
    os.mkfifo(folder / INDEX)
    return folder / "x.ckpt"


@attack("there is no such file")
def pipe_for_tensorflows_data(folder: Path) -> Path:
    path = bundle(folder, (b"x", integer_field(1, 1) + message_field(2, b"")))
    (folder / DATA).unlink()
    os.mkfifo(folder / DATA)
    return path


@attack("there is no such checkpoint")
def device_without_end(folder: Path) -> Path:
    (folder / MODEL).symlink_to("/dev/zero")
    return folder / MODEL


@attack("holds no weights")
def folder_for_a_file(folder: Path) -> Path:
    (folder / MODEL).mkdir()
    return folder


# --- a terabyte of zeros, which takes no space


def sparse(path: Path, start: bytes = b"", end: bytes = b"") -> Path:
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(TERABYTE - len(end))
        file.seek(0, 2)
        file.write(end)
    return path


@attack("not valid JSON")
def terabyte_of_safetensors(folder: Path) -> Path:
    return sparse(folder / MODEL).parent


@attack("do not hold the header")
def terabyte_with_a_header_of_most_of_it(folder: Path) -> Path:
    return sparse(folder / MODEL, (TERABYTE // 2).to_bytes(8, "little") + b"{").parent


@attack("are no checkpoint's index")
def terabyte_of_index(folder: Path) -> Path:
    return sparse(folder / INDEX, end=bytes(40) + table.MAGIC)


@attack("directory cannot be read")
def terabyte_of_zip(folder: Path) -> Path:
    return sparse(folder / "x.zip", b"PK\3\4")


@attack("directory cannot be read")
def terabyte_of_zip_with_a_directory_of_most_of_it(folder: Path) -> Path:
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, (1 << 32) - 2, 0, 0)
    return sparse(folder / "x.zip", b"PK\3\4", last)


@attack("malformed")
def terabyte_of_legacy_pickle(folder: Path) -> Path:
    return sparse(folder / BIN, LEGACY_MAGIC[:-1])


# --- and all of them


@pytest.fixture
def here(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has all of a checkpoint but the weights, in a working directory of its own."""
    folder = tmp_path / "attack"
    folder.mkdir()
    for name in ("config.json", "vocab.txt"):
        (folder / name).write_bytes((originals / "hf" / name).read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(originals.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_one_line(name: str, here: Path, originals: Path, tmp_path: Path) -> None:
    make, said = ATTACKS[name]
    checkpoint = make(here)
    before = set(tmp_path.rglob("*"))
    for arguments in commands(checkpoint, originals, tmp_path / "target").values():
        start, held = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done = minibert_in_process(*arguments)
        taken = time.monotonic() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held << 10  # of the most it ever held
        refused(done, said)
        assert taken < SECONDS and grown < MEMORY, (taken, grown)
        assert set(tmp_path.rglob("*")) == before  # there is no `target` and nothing was `pwned`


# --- wrong bytes of a tensor, which are found when it is read


def tensors_with_a_wrong_byte(originals: Path, folder: Path) -> Iterator[Path]:
    for form, name in (("tensorflow", "bert_model.ckpt.data-00000-of-00001"), ("torch", BIN)):
        there = folder / form
        there.mkdir()
        for path, content in contents(originals / form).items():
            wrong = bytearray(content)
            if path == name:  # in the middle, where tensors are
                wrong[len(wrong) // 2] ^= 1
            (there / path).write_bytes(wrong)
        yield there


def test_a_wrong_checksum_is_shown_and_keeps_the_checkpoint_from_use(originals: Path, tmp_path: Path) -> None:
    for folder in tensors_with_a_wrong_byte(originals, tmp_path):
        done = minibert_in_process("inspect", folder)
        assert done.code == 0 and "damaged: " in done.out, done
        for name, arguments in commands(folder, originals, tmp_path / "target").items():
            if name != "inspect":
                refused(minibert_in_process(*arguments), "do not have their checksum|its CRC-32 is wrong")
                assert not contents(tmp_path / "target")


def test_a_storage_with_a_wrong_checksum_is_read_through_once(tmp_path: Path) -> None:
    """Not once for each tensor in it: there can be thousands in a gigabyte."""
    count = 1 << 22
    one = tensor(0, (1,), (1,), storage("0", "FloatStorage", count))
    path = zipped(tmp_path / BIN, pickled(**{f"x{i}": one for i in range(500)}), {"0": bytes(4 * count)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    start = time.process_time()
    done = minibert_in_process("inspect", path)
    assert done.code == 0 and done.out.count("its CRC-32 is wrong") == 500
    assert time.process_time() - start < 3


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and no rights but everybody's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        is_root = os.geteuid() == 0
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)
            for path in Path(folder).rglob("*"):
                path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("what", [MODEL, "config.json", "."])
def test_what_must_not_be_read_is_said_to_be_so(what: str, originals: Path, nobody: Path) -> None:
    folder = nobody / "model"
    folder.mkdir()
    for name, content in contents(originals / "hf").items():
        (folder / name).write_bytes(content)
    (folder / what).chmod(0)
    if os.geteuid() == 0:  # whom no mode keeps out
        os.seteuid(65534)
    for command, arguments in commands(folder, originals, nobody / "target").items():
        if command == "finetune" or (command == "inspect" and what == "config.json"):
            continue  # reads the data first, which are another's; and shows what it can
        refused(minibert_in_process(*arguments), "ermission denied")


def test_a_signalling_nan_is_refused_without_a_warning(here: Path) -> None:
    """NumPy warns when it casts one."""
    signalling = np.full(8, 0x7FF4000000000001, np.uint64).tobytes()
    header = {"x": {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]}}
    folder = safetensors(here, json.dumps(header).encode(), data=signalling)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        huggingface.read(folder / MODEL).entries["x"].read()
