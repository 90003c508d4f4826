"""The small model of tests/models.py in training on any device; as a program, with JAX in a process of its own.

A process has one number of devices, so tests/test_tpu_devices.py runs

    python tests/tpu_worker.py OUT.npz [shared]
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

import models
from minibert import training
from minibert.kernels import devices
from minibert.settings import TrainConfig
from minibert.training import Trainer

Training = tuple[np.ndarray, np.ndarray]
STEPS, BATCH, MICRO = 20, 11, 4  # neither number of examples divides into anybody's devices


def trainer(name: str, stages: int = 1, **settings: Any) -> Trainer:
    """The model on a device of that name, at full rate from the first step, with dropout.

    Its batches are all padded to one length, so that one program serves most tests.
    """
    given = {"batch_size": BATCH, "micro_batch": MICRO, "epochs": 10, "learning_rate": 1e-3, "warmup": 0.0} | settings
    config = TrainConfig(task="test", precision="fp32", device="tpu" if name == "tpu" else "cpu", **given)
    data = [models.split(48, longest=30, seed=seed) for seed in range(3, 3 + stages)]
    if name == "tpu":
        from minibert.tpu import device as tpu

        device: devices.Device = tpu.open("fp32")
    else:
        device = devices.open(name)
    return training.trainer(models.bert(device), data[0], config, [(part, config.epochs) for part in data[1:]])


def trained(t: Trainer, steps: int = STEPS) -> Training:
    """Loss, rate, norm and tokens of each step, and the weights after them."""
    with t.bert.device.session():
        done = np.array([dataclasses.astuple(t.step(step)) for step in range(steps)])
    t.fetch()
    return done, flat(t)


def flat(t: Trainer) -> np.ndarray:
    """All weights, end to end."""
    return np.concatenate([array.reshape(-1) for array in t.bert.arrays().values()]).astype(np.float64)


def assert_same_training(found: Training, wanted: Training, tolerance: float = 1e-4) -> None:
    """What steps told, within the tolerance; weights, within 1e-4 of the way that they went."""
    np.testing.assert_allclose(found[0], wanted[0], rtol=tolerance, atol=tolerance)
    distance = np.linalg.norm(wanted[1] - flat(trainer("cpu")))
    assert distance > 0.1 and np.linalg.norm(found[1] - wanted[1]) <= 1e-4 * distance


if __name__ == "__main__":
    import jax

    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    t = trainer("tpu", shard_parameters="shared" in sys.argv[2:])
    plain, after, programs = t.step, [], []
    program = t._program  # type: ignore[attr-defined]

    def update(*arguments: Any) -> Any:
        programs.append(program.lower(*arguments).compile().as_text())  # what is called then
        return program(*arguments)

    def step(number: int) -> Any:
        done = plain(number)
        after.append(sum("backend_compile" in name for name in compiled))
        return done

    t.step, t._program = step, update  # type: ignore[method-assign, attr-defined]
    told, weights = trained(t)
    assert after[0] > 0
    if jax.process_index() == 0:
        world = jax.device_count(), jax.process_count()
        given = {"told": told, "weights": weights, "world": world, "program": programs[0]}
        np.savez(sys.argv[1], compiled=after[-1] - after[2], **given)
