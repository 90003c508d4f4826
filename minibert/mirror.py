"""Folders at gs:// addresses that are worked in here and published there, file by file.

An object store renames nothing, so a manifest is written last, under the condition that it is still the known one:

manifest.json   {"holder": ..., "files": {NAME: {"object", "size", "crc32c", "generation"}}}

Of what minibert uploads only that is in the folder which it names, and no other object is ever overwritten: a file that
changes becomes another object, and the old one goes when no manifest names it any more. Wherever publishing breaks off,
the folder is what it was.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from minibert import files, gcs, remote, temporary
from minibert.errors import RunError, StorageError
from minibert.gcs import Object
from minibert.remote import MANIFEST, MARK, OTHER, TRIES


class Mirror:
    """A folder at a gs:// address, and `path`, the local one that is worked in for it until this object goes.

    `owns` says which names are this folder's; others stay as they are, and so do those that are not brought here,
    unless the folder is to be `fresh`. Who sets `hold` keeps it: when the next process holds it, `publish` raises
    RunError here and changes nothing. Others may add files meanwhile.
    """

    def __init__(self, path: str | Path, owns: Callable[[str], bool], fresh: bool = False):
        self.url, self.owns, self.hold = gcs.address(path), owns, False
        self.bucket = gcs.split(self.url)[0]
        self.writer = secrets.token_hex(4)
        self.state = remote.state(self.url)
        # The files as they were here last: what stands here as it was leaves alone what stands there, and what is
        # not here any more goes there.
        self._known = {name: each for name, each in self.state.files.items() if fresh and owns(name)}
        self._sums: dict[str, tuple[tuple[int, ...], tuple[int, str]]] = {}  # by name: a file's version, its checksum
        self._sent: dict[str, Object] = {}  # what is uploaded and named by no manifest yet
        self._swept = False
        folder = remote.cache(self.url)
        with files.one_line(folder, "write", StorageError):
            folder.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f"{MARK}work-", dir=folder))
        weakref.finalize(self, temporary.removal(self.path))

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Brings those of the folder's own files here that are wanted, with what is here already of one publication."""
        for _ in range(TRIES):
            owned = {name: each for name, each in self.state.files.items() if self.owns(name)}
            try:
                for name, each in owned.items():
                    if (wanted(name) or name in self._known) and self._known.get(name) != each:
                        with files.one_line(self.path, "write", StorageError):
                            gcs.download(self.bucket, each, self.path / name, None)
                        self._known[name] = each
                return
            except gcs.Absent:  # published anew meanwhile
                self.state = remote.state(self.url)
        raise StorageError(f"{self.url}: changes all the time: try again")

    def _sum(self, path: Path) -> tuple[int, str]:
        """A file's checksum, counted once for each time that it is written."""
        stat = path.stat()
        version = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if self._sums.get(path.name, (None, None))[0] != version:
            self._sums[path.name] = version, gcs.checksum(path)
        return self._sums[path.name][1]

    def publish(self, settle: bool = False) -> None:
        """Makes the folder there what it is here. With `settle` every file gets the object of its own name.

        Where that fails the local folder is kept: it is as good.
        """
        try:
            for _ in range(TRIES):
                with contextlib.suppress(gcs.Changed):
                    return self._publish(settle)
                self._look_again()
            raise StorageError(f"{self.url}: changes all the time: try again")
        except StorageError as error:
            kept = self.path.rename(files.user_cache() / f"unpublished-{self.bucket}-{self.writer}")
            raise StorageError(f"{error}; what could not be published is kept in {kept}") from None

    def _look_again(self) -> None:
        """Reads what stands there after somebody has changed it; RunError where that is who holds it now."""
        holder = self.state.holder
        self.state = remote.state(self.url)
        lost = self.hold and self.state.holder != holder
        if lost or not self.hold:  # a new holder may have swept up what was sent: nobody else would
            for each in self._sent.values():
                gcs.remove(self.bucket, each)
            self._sent.clear()
        if lost:
            raise RunError(
                f"{self.url}: another process writes into it, and this one stops; choose another --output-dir"
            )

    def _publish(self, settle: bool) -> None:
        if not self.state.generation:
            self._commit(self.state.files)  # from now on what is on its way does not count as there
        paths = {p.name: p for p in sorted(self.path.iterdir()) if p.is_file() and not p.name.startswith(".")}
        sums = {name: self._sum(path) for name, path in paths.items()}
        gone = self._known.keys() - paths.keys()
        found = {name: each for name, each in self.state.files.items() if name not in gone}
        for name, path in paths.items():
            known = self._known.get(name)
            if known is None or known.sum != sums[name]:  # else whatever stands there by now is right
                there = found.get(name)
                if there is None or there.sum != sums[name]:
                    sent = self._sent.get(name)
                    self._sent[name] = sent if sent and sent.sum == sums[name] else self._upload(name, path)
                    found[name] = self._sent[name]
        self._commit(found)
        self._known = {name: found[name] for name in paths if name in found}
        moved = [name for name, each in self._known.items() if each.name != name and each.sum == sums[name]]
        if settle and moved:
            self._sent = {name: self._upload(name, paths[name]) for name in moved}
            self._commit(found | self._sent)

    def _upload(self, name: str, path: Path) -> Object:
        """A file as an object of its own name, or where something stands under that of a name that nobody has."""
        there = self.state.files.get(name)
        if there is None or there.name != name:
            with contextlib.suppress(gcs.Changed):
                return gcs.upload(f"{self.url}/{name}", path, generation=0)
        return gcs.upload(f"{self.url}/{name}{OTHER}{self.writer}-{secrets.token_hex(4)}", path, generation=0)

    def _commit(self, found: Mapping[str, Object]) -> None:
        """Writes the manifest, or raises Changed where it is another by now; then removes what it does not name."""
        holder = self.writer if self.hold else self.state.holder
        entries = {
            name: {"object": each.name, "size": each.size, "crc32c": each.crc32c, "generation": each.generation}
            for name, each in found.items()
            if each.token  # what others have put there is theirs to replace
        }
        path = self.path / f".{MANIFEST}"
        files.write_whole(path, json.dumps({"holder": holder, "files": entries}, indent=2).encode())
        old = [*self.state.files.values(), *self._leftovers()]  # before another process can take this for its own
        written = gcs.upload(f"{self.url}/{MANIFEST}", path, self.state.generation)
        self.state = remote.State(dict(found), holder, written.generation)
        self._sent.clear()
        self._swept = self.hold
        named = {each.key for each in found.values()}
        for each in old:
            if each.key not in named:
                gcs.remove(self.bucket, each)

    def _leftovers(self) -> list[Object]:
        """For the first commit of who holds the folder: its objects, also those over which somebody was killed."""
        if self._swept or not self.hold:
            return []
        there = gcs.listing(self.url)
        own = [each for each in there if each.name != MANIFEST and self.owns(each.name.partition(OTHER)[0])]
        return [each for each in own if each.token]


@contextlib.contextmanager
def output(
    path: str | Path, overwrite: bool = True, owns: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """A folder to write into: `path`, or for a gs:// address a local one, published when all has gone well.

    Files of other names stay there; with `overwrite` those that it `owns` are here from the beginning, and what is
    removed of them here goes there. StorageError where one would be replaced without `overwrite`.
    """
    if not gcs.is_address(path):
        yield Path(path)
        return
    mirror = Mirror(path, owns)
    if overwrite:
        mirror.pull()
    yield mirror.path
    if not overwrite and (twice := [p.name for p in sorted(mirror.path.iterdir()) if p.name in mirror.state.files]):
        raise StorageError(f"{mirror.url}/{twice[0]}: is there already: choose another place or add --overwrite")
    mirror.publish(settle=True)
