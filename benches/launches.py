"""What Python and launching cost: a launch whose tasks take next to no time, and a step of a model as small as that.

    python benches/launches.py [--threads 2] [--precision fp32] [--layers 6]

What is left of a real step when its kernels are taken away, so that it shows what faster kernels cannot spare.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np

from minibert.bert import Bert
from minibert.config import BertConfig
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.add import cpu as add
from minibert.kernels.devices import cpu
from minibert.settings import TrainConfig
from minibert.tokenizer import Features
from minibert.training import Trainer

EXAMPLES, LENGTH, BATCH = 400, 4, 4
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 1, "intermediate_size": 64,
    "max_position_embeddings": 8,
}  # fmt: skip


def wait(microseconds: float) -> None:
    until = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < until:
        pass


def typical(call: Callable[[], object], times: int, pause: float = 0) -> float:
    """The median of its seconds, with so many microseconds of Python before each."""
    found = []
    for _ in range(times):
        wait(pause)
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return median(found)


def trainer(precision: str, layers: int) -> Trainer:
    config, rng = BertConfig(**SIZES, num_hidden_layers=layers), np.random.default_rng(0)
    bert = Bert(config, 2, devices.open("cpu", precision=precision))
    for group in bert.groups:
        group.weights[:] = 0.02 * rng.standard_normal(group.weights.shape, np.float32)
    ids = rng.integers(0, config.vocab_size, EXAMPLES * LENGTH).astype(np.int32)
    features = Features(ids, np.zeros_like(ids), np.arange(0, len(ids) + 1, LENGTH))
    settings = TrainConfig(task="mrpc", precision=precision, batch_size=BATCH, epochs=1, warmup=0)
    return Trainer(bert, Split("train", features, np.zeros(EXAMPLES, np.int32)), settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cpu.threads())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    cpu.set_threads(args.threads)
    x = np.ones(64, np.float32)
    for tasks in (1, args.threads):
        for pause in (0, 100, 1000):
            took = typical(partial(cpu.run, add._add, tasks, x, x, x), 1000, pause)
            print(f"launch of {tasks} after {pause:4} us of Python: {1e6 * took:6.1f} us")
    training = trainer(args.precision, args.layers)
    with training.bert.device.session():
        training.step(0)
        print(f"step of {args.layers} layers: {1e3 * typical(partial(training.step, 1), 100):.1f} ms")


if __name__ == "__main__":
    main()
