"""JAX's devices as one of the engine's: weights and moments stand in this host's memory, and are copied to compute."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax.experimental import multihost_utils

from minibert import files, temporary
from minibert.bert import Bert
from minibert.errors import BackendError, RunError
from minibert.kernels.devices import Device
from minibert.tpu import model, sharding
from minibert.tpu.model import Params

HOSTS = "MINIBERT_HOSTS"


class Tpu(Device):
    """All devices of all hosts. No operation has kernels here: models are computed whole, by XLA."""

    def __init__(self, precision: str):
        super().__init__("tpu", variants={"sum_squares": "reference"})  # which optim.Adam asks for its scratch
        self.precision, self.mesh = precision, sharding.mesh()
        self._params: WeakKeyDictionary[Bert, Params] = WeakKeyDictionary()

    @property
    def description(self) -> str:
        return f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}"

    def parameters(self, bert: Bert) -> Params:
        """A model's weights on every device, copied anew where somebody may have changed them."""
        weights = [param for group in bert.groups for param in group]
        if bert not in self._params or any(param.stale for param in weights):
            arrays = model.from_arrays(bert.arrays())
            self._params[bert] = sharding.put(arrays, sharding.everywhere(self.mesh))
            for param in weights:
                param.stale = False
        return self._params[bert]

    @contextlib.contextmanager
    def memory(self, advice: str) -> Iterator[None]:
        """A RunError with this advice where memory does not suffice to copy, compile or run: JAX may say it only when a
        result is asked for.
        """
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            raise RunError(f"the memory of {self.description} does not suffice; {advice}") from None

    def forget(self, bert: Bert) -> None:
        """Frees a model's weights on the devices, which stand there once more while it is trained."""
        self._params.pop(bert, None)


def out_of_memory(error: Exception) -> bool:
    """Whether compiling or running a program failed for want of the devices' memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def open(precision: str) -> Tpu:  # noqa: A001 - as the other devices' modules have it
    platform()
    return Tpu(precision)


def settled_precision(precision: str) -> str:
    """fp32 or bf16; `auto` is bf16 on TPUs, which multiply it, and fp32 where JAX runs on something else. BackendError
    for what is neither."""
    if precision == "tf32":
        raise BackendError("precision tf32 is the GPU's; use --precision bf16, fp32 or auto")
    return precision if precision != "auto" else "bf16" if platform() == "tpu" else "fp32"


@cache
def platform() -> str:
    """What JAX runs on, once it has joined the other hosts, if there are any.

    BackendError where that is no TPU, unless JAX_PLATFORMS names it.
    """
    asked = jax.config.values["jax_platforms"]
    try:
        with _quiet_unless_it_works():
            _join()
            found = jax.default_backend()
            if found != "tpu" and not asked:
                raise RuntimeError(f"JAX has found: {found}")
            if found == "tpu":
                keep_programs()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BackendError(
            f"there is no TPU on this machine ({reason[:200]}); run this on a TPU's own, as docs/tpu.md shows, or set "
            "JAX_PLATFORMS=cpu to have JAX compute the same on the CPU"
        ) from None
    return found


def keep_programs() -> None:
    """Has JAX keep what it compiles, minutes for a program, in the user's cache, unless the user has named a place. Of
    several processes only the first would: the others would keep it waiting.
    """
    if jax.process_count() == 1 and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(files.user_cache() / "xla"))


def _join() -> None:
    """Makes this process one of several, where MINIBERT_HOSTS says so: "auto" on a slice of Cloud TPU, which knows its
    hosts, or ADDRESS:PORT,COUNT,NUMBER, the address being that of number 0.
    """
    if not (hosts := os.environ.get(HOSTS)) or jax.distributed.is_initialized():
        return
    address, *numbers = hosts.split(",")
    if hosts != "auto" and not (len(numbers) == 2 and all(number.isdecimal() for number in numbers)):
        raise BackendError(f"{HOSTS}={hosts}: is neither auto nor ADDRESS:PORT,COUNT,NUMBER")
    try:
        if hosts == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(address, int(numbers[0]), int(numbers[1]))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"{HOSTS}={hosts}: the processes did not come together ({reason[:200]})") from None


def own_directory(path: Path) -> Path:
    """Where this process writes what every process of a run computes: the first one into `path`, the others into
    folders that are gone when they end, and that begin with links to what is in `path`.
    """
    platform()
    own = path
    if jax.process_index():
        own = temporary.folder("minibert-")
        for entry in path.iterdir() if path.is_dir() else ():
            if not entry.name.startswith("."):
                (own / entry.name).symlink_to(entry.resolve())
    if jax.process_count() > 1:  # the first may write when all have looked
        multihost_utils.sync_global_devices("directories")
    return own


def check_agreement(stream: int, settings: str, state: Any, data: Any) -> None:
    """RunError where processes are about to go on from different steps, weights or moments, or with other data."""
    if jax.process_count() == 1:
        return
    digests = [stream, zlib.crc32(settings.encode()), 0, 0]
    for i, tree in enumerate((state, data), 2):
        for array in jax.tree.leaves(tree):
            digests[i] = zlib.crc32(np.ascontiguousarray(array).data, digests[i])
    found = multihost_utils.process_allgather(np.array(digests, np.uint32))
    if (found[:, [0, 2]] != found[0, [0, 2]]).any():
        raise RunError("the hosts go on from different states: give them an --output-dir that all of them see")
    if (found != found[0]).any():
        raise RunError("the hosts have different data or settings: give all of them the same files and options")


def any_process(wish: bool) -> bool:
    """Whether any of the processes wants something, which all of them have to ask at the same time."""
    if jax.process_count() == 1:
        return wish
    return bool(multihost_utils.process_allgather(np.array(wish)).any())


@contextlib.contextmanager
def _quiet_unless_it_works() -> Iterator[None]:
    """Holds back what libtpu writes to stderr by itself; it is dropped where there is an error, which says enough."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
        held.seek(0)
        os.write(2, held.read())
