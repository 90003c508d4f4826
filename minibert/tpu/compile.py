"""The training step compiled by Google's TPU compiler for a slice of TPUs, on a machine that has none.

libtpu compiles for a described topology and tells what each core would hold. Whether a batch fits, and how one that
does not can be computed so that it does, is found by compiling: nothing here estimates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from minibert import files, hub
from minibert.config import BertConfig
from minibert.errors import BackendError, ConfigError, MinibertError
from minibert.settings import TrainConfig
from minibert.tpu import batches, model, planning, sharding, training
from minibert.tpu.trainer import split

# Cloud TPU's names of slices and libtpu's topologies, which are chips along each axis. The number in a name counts
# cores where a chip has two of them (v2, v3, v4, v5p), and chips elsewhere. From v4 on the two work as one, with the
# memory of both: that is then the core of a report.
TOPOLOGIES = {
    "v2-8": "v2:2x2", "v2-32": "v2:4x4", "v2-128": "v2:8x8",
    "v3-8": "v3:2x2", "v3-32": "v3:4x4", "v3-128": "v3:8x8",
    "v4-8": "v4:2x2x1", "v4-16": "v4:2x2x2", "v4-32": "v4:2x2x4",
    "v5e-1": "v5e:1x1", "v5e-4": "v5e:2x2", "v5e-8": "v5e:2x4", "v5e-16": "v5e:4x4",
    "v5p-8": "v5p:2x2x1", "v5p-16": "v5p:2x2x2", "v5p-32": "v5p:2x2x4",
    "v6e-1": "v6e:1x1", "v6e-4": "v6e:2x2", "v6e-8": "v6e:2x4", "v6e-16": "v6e:4x4",
}  # fmt: skip
# libtpu asks for the machine that it runs on, wants it for itself and writes logs, unless it is told.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v2-8", "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_LOG_DIR": "disabled", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The compiler's refusals: what is needed and what there is.
_REFUSALS = (
    r"required for .*? \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)


@dataclass(frozen=True)
class Need:
    """What a program takes on each core, in bytes, and how long it took to compile, in seconds.

    Of one that was refused the compiler tells no more than how much it wanted of all that there is: `arguments` and
    `temporaries` are None then.
    """

    fits: bool
    peak: int
    arguments: int | None
    temporaries: int | None
    seconds: float


@dataclass(frozen=True)
class Slice:
    """A described slice: its cores, on which nothing can run, and the bytes that programs have on each."""

    name: str
    cores: list[Any]
    hbm: int


def topology(name: str) -> str:
    """libtpu's name of a slice: v2:2x2 of v2-8. ConfigError for one that is not known."""
    plain = name.lower().replace("v5litepod", "v5e")  # as gcloud calls it
    if plain not in TOPOLOGIES:
        raise ConfigError(f"topology {name} is not known: choose from {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[plain]


def describe(name: str) -> Slice:
    """The slice of that name. BackendError where libtpu is missing."""
    described = topology(name)
    os.environ.update(ENVIRONMENT)
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise BackendError(
            'compiling for TPUs needs libtpu, which there is for Linux: pip install ".[tpu]" in the checkout'
        ) from None
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine, if it has one, stays free
    cores = {"chip_config_name": "megacore"} if described.startswith("v4") else {}
    found = list(topologies.get_topology_desc(described, "tpu", **cores).devices)
    return Slice(name, found, _memory(found))


def _memory(cores: list[Any]) -> int:
    """The bytes of HBM that programs have on a core: the compiler names them to a program that wants a terabyte."""
    huge = jax.ShapeDtypeStruct((2**19, 2**19), "float32", sharding=sharding.everywhere(sharding.mesh(cores)))
    try:
        jax.jit(lambda x: x @ jax.numpy.sin(x)).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return shortage(str(error))[1]
    raise BackendError("libtpu fits a terabyte into a core: this version of it is not understood")


def shortage(message: str) -> tuple[int, int]:
    """The bytes that a program wants on a core and those that there are, from the compiler's refusal.

    BackendError where it refuses for another reason.
    """
    for form in _REFUSALS:
        if found := re.search(form, message):
            want, unit, have, units = found.groups()
            return int(float(want) * _UNITS[unit]), int(float(have) * _UNITS[units])
    raise BackendError(f"libtpu cannot compile this: {message.strip().splitlines()[0][:300]}")


def needs(lowered: Any, target: Slice) -> Need:
    """Compiles a program. What an earlier call was told of the same program by the same compiler is taken from disk."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu")]
    told = "\n".join([topology(target.name), *versions, lowered.as_text()])
    kept = files.user_cache() / "tpu" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or not whole, or another version's
        return Need(**json.loads(kept.read_bytes()))
    begun = time.perf_counter()
    try:
        use = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        need = Need(False, shortage(str(error))[0], None, None, 0)
    else:
        # What is returned takes the place of the arguments that were given up for it.
        arguments = use.argument_size_in_bytes + use.output_size_in_bytes - use.alias_size_in_bytes
        peak = arguments + use.temp_size_in_bytes
        need = Need(peak <= target.hbm, peak, arguments, use.temp_size_in_bytes, 0)
    need = dataclasses.replace(need, seconds=round(time.perf_counter() - begun, 1))
    with contextlib.suppress(MinibertError):  # a cache that cannot be written costs the next call its time
        files.write_whole(kept, json.dumps(dataclasses.asdict(need)).encode())
    return need


def operations(jaxpr: Any) -> int:
    """Floating-point operations of a program's matrix products, a loop's as often as it runs, and one device's of what
    devices do side by side (`shard_map`).

    XLA's own count takes the body of a loop once, and a model's layers are one.
    """
    total = 0
    for step in jaxpr.eqns:
        if step.primitive.name == "dot_general":
            (summed, _), _ = step.params["dimension_numbers"]
            shape = step.invars[0].aval.shape
            total += 2 * step.outvars[0].aval.size * math.prod(shape[axis] for axis in summed)
        inner = [getattr(value, "jaxpr", value) for value in step.params.values()]
        total += step.params.get("length", 1) * sum(operations(one) for one in inner if hasattr(one, "eqns"))
    return total


def report(
    name: str, checkpoint: str, settings: TrainConfig, recompute: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """What `minibert tpu compile` tells: the slice, the step as the settings ask for it, and under "instead" the first
    way that fits where that does not, or None. `recompute` is a policy, or "auto" for any. ConfigError for more tokens
    than the model has positions.
    """
    config = hub.config(checkpoint)
    if settings.max_seq_length > config.max_position_embeddings:
        raise ConfigError(f"--max-seq-length {settings.max_seq_length}: give at most {config.max_position_embeddings}")
    target = describe(name)
    length = batches.bucket(settings.max_seq_length, config.max_position_embeddings)
    found: dict[str, Any] = {
        "topology": name, "device": target.cores[0].device_kind, "cores": len(target.cores), "hbm": target.hbm,
        "checkpoint": checkpoint, "task": settings.task, "max_seq_length": settings.max_seq_length,
        "batch_size": settings.batch_size, "precision": settings.precision,
    }  # fmt: skip
    for number, way in enumerate(_ways(settings, length, len(target.cores), recompute)):
        say(f"compiling for {name}, {spelled(way)}: half a minute to four minutes on free cores")
        told = _tried(target, config, way, length)
        say(f"{told['peak'] / 2**30:.2f} of {target.hbm / 2**30:.2f} GiB a core, compiled in {told['seconds']:.0f} s")
        if number == 0:
            found |= told | {"instead": None}
        elif told["fits"]:
            found["instead"] = told
        if told["fits"]:
            break
    return found


def _ways(settings: TrainConfig, length: int, cores: int, recompute: str) -> Iterator[TrainConfig]:
    """What training itself would try, and at last the leanest of it with parameters shared out."""
    way = settings
    for way in planning.ways(settings, length, cores, recompute):
        yield way
    if cores > 1 and not way.shard_parameters:
        yield dataclasses.replace(way, shard_parameters=True)


def _tried(target: Slice, config: BertConfig, way: TrainConfig, length: int) -> dict[str, Any]:
    """The training step compiled for one way of computing it."""
    mesh, head = sharding.mesh(target.cores), model.SPANS if way.task == "squad" else 2
    micros, rows = split(way.batch_size, length, way, mesh.size)
    program = training.program(mesh, config, head, way.recompute == "layers", way.precision, way.shard_parameters)
    traced = program.trace(*training.arguments(mesh, config, head, micros, rows, length, way.shard_parameters))
    return {
        "options": spelled(way), "recompute": way.recompute, "shard_parameters": way.shard_parameters,
        "micro_batches": micros, "examples": rows, "operations": operations(traced.jaxpr.jaxpr),
        **dataclasses.asdict(needs(traced.lower(), target)),
    }  # fmt: skip


def spelled(way: TrainConfig) -> str:
    """A way to compute a batch as the options that ask for it."""
    parts = [f"--recompute {way.recompute}"]
    if way.micro_batch < way.batch_size:
        parts.append(f"--micro-batch {way.micro_batch}")
    if way.micro_tokens:
        parts.append(f"--micro-tokens {way.micro_tokens}")
    return " ".join([*parts, "--shard-parameters"] if way.shard_parameters else parts)
