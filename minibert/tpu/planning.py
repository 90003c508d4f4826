"""What fits into the devices' memory, by compiling it: before training, where the compiler knows how much there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from minibert.config import BertConfig
from minibert.errors import ConfigError
from minibert.evaluation import Split
from minibert.kernels.devices import Device
from minibert.settings import TrainConfig
from minibert.tpu import batches, model, training
from minibert.tpu.device import Tpu, out_of_memory, platform
from minibert.tpu.trainer import split

Config = TypeVar("Config", bound=TrainConfig)


def fitted(
    settings: Config,
    config: BertConfig,
    data: Sequence[tuple[Split, float]],
    device: Device,
    recompute: str,
    spans: bool,
) -> tuple[Config, str]:
    """The settings with the fastest recomputation and micro-batches that fit, and a line about it.

    What is given stays: `recompute` unless it is "auto", and micro-batches. ConfigError if nothing fits.
    """
    if platform() != "tpu":  # the host's memory: the compiler does not know it
        return settings, ""
    longest = max(int(np.diff(part.features.offsets).max()) for part, _ in data)
    assert isinstance(device, Tpu)
    length = batches.bucket(longest, config.max_position_embeddings)
    for way in ways(settings, length, device.mesh.size, recompute):
        micros, rows = split(way.batch_size, length, way, device.mesh.size)
        layout, shared = (device.mesh, config, model.SPANS if spans else len(config.id2label)), way.shard_parameters
        program = training.program(*layout, way.recompute == "layers", way.precision, shared)
        try:
            program.lower(*training.arguments(*layout, micros, rows, length, shared)).compile()
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
        else:
            return way, f"recompute {way.recompute}, {micros} micro-batches of {rows}" if way != settings else ""
    raise ConfigError(
        f"the memory of {device.description} does not suffice for {rows} examples of {length} tokens at a time; "
        "a smaller --max-seq-length or --shard-parameters takes less"
    )


def ways(settings: Config, length: int, devices: int, recompute: str) -> Iterator[Config]:
    """The settings, from the fastest to the leanest: nothing computed again, layers, and then halves of the batch."""
    whole = not settings.in_parts
    policies = ("none", "layers") if recompute == "auto" else (recompute,)
    yield from (dataclasses.replace(settings, recompute=policy) for policy in policies)
    _, rows = split(settings.batch_size, length, settings, devices)
    while whole and rows > devices:
        rows = batches.multiple(-(-rows // 2), devices)
        yield dataclasses.replace(settings, recompute=policies[-1], micro_tokens=rows * length)
