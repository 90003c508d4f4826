"""Speed of a training step on real MRPC batches of 32: minibert against transformers + PyTorch, both in fp32.

    pip install -e ".[peers]"
    python benches/compare_step.py --data-dir DIR

Random weights of the shapes of MiniLM and Base. Each side has a process of its own, all cores, and the same
batches; the two take turns. A step is forward, backward, clipping and the update, dropout on. PyTorch pads to
the longest of the batch and runs SDPA and its fused AdamW. First both must give one loss without dropout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

BATCH, LENGTH, RATE, SEED = 32, 128, 2e-5, 1


def prepare(shape: str, data_dir: Path, batches: int, folder: Path) -> None:
    """Writes what both sides load: a checkpoint of random weights, and MRPC's first examples, tokenized."""
    from minibert import checkpoint, tasks
    from minibert.checkpoint.names import shapes
    from minibert.evaluation import read_split
    from minibert.random import initial_weights, order
    from minibert.tokenizer import Tokenizer

    found = checkpoint.load(f"random:{shape}")
    arrays = initial_weights(shapes(found.config, 2), found.config.initializer_range, SEED)
    checkpoint.save(folder, found.config, arrays)
    split = read_split(tasks.get("mrpc"), "train", data_dir, Tokenizer.from_vocab(found.vocab), LENGTH)
    offsets = split.features.offsets[: batches * BATCH + 1]
    end = offsets[-1]
    np.savez(
        folder / "examples.npz",
        ids=split.features.ids[:end],
        segments=split.features.segments[:end],
        offsets=offsets,
        labels=split.labels[: batches * BATCH],
        order=order(batches * BATCH, SEED, 0).reshape(batches, BATCH),
    )


class Ours:
    """minibert's training step."""

    def __init__(self, folder: Path, threads: int):
        from minibert import checkpoint
        from minibert.bert import Bert
        from minibert.evaluation import Split
        from minibert.kernels import devices
        from minibert.settings import TrainConfig
        from minibert.tokenizer import Features
        from minibert.training import Trainer

        found, self.examples = checkpoint.load(folder), load_examples(folder)
        bert = Bert(found.config, 2, devices.open("cpu", threads=threads))
        bert.fill(found.arrays)
        features = Features(*(self.examples[name] for name in ("ids", "segments", "offsets")))
        split = Split("train", features, self.examples["labels"])
        settings = TrainConfig(task="mrpc", batch_size=BATCH, epochs=1, learning_rate=RATE, warmup=0, seed=SEED)
        self.trainer, self.session = Trainer(bert, split, settings), bert.device.session()

    def loss(self, number: int) -> float:
        value, _ = self.trainer.gradients(self.examples["order"][number], key=None)
        for group in self.trainer.bert.groups:
            group.gradients.fill(0)
        return value

    def step(self, number: int) -> None:
        self.trainer.step(number)

    def about(self) -> str:
        import numba

        return f"minibert: NumPy {np.__version__}, Numba {numba.__version__}"


class Theirs:
    """transformers' model, PyTorch's optimizer."""

    def __init__(self, folder: Path, threads: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        self.model = load(folder, attn_implementation="sdpa")
        self.examples, self.session = load_examples(folder), nullcontext()
        decayed, other = [], []
        for name, p in self.model.named_parameters():
            (other if "LayerNorm" in name or "bias" in name else decayed).append(p)
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-6, fused=True)

    def batch(self, number: int) -> dict[str, Any]:
        import torch

        offsets, numbers = self.examples["offsets"], self.examples["order"][number]
        lengths = offsets[numbers + 1] - offsets[numbers]
        places = np.arange(lengths.max())
        here = places < lengths[:, None]
        inputs = {"attention_mask": torch.from_numpy(here.astype(np.int64))}
        for name, source in (("input_ids", "ids"), ("token_type_ids", "segments")):
            padded = np.zeros(here.shape, np.int64)
            padded[here] = self.examples[source][(offsets[numbers][:, None] + places)[here]]
            inputs[name] = torch.from_numpy(padded)
        return inputs | {"labels": torch.from_numpy(self.examples["labels"][numbers].astype(np.int64))}

    def loss(self, number: int) -> float:
        import torch

        with torch.inference_mode():
            return self.model.eval()(**self.batch(number)).loss.item()

    def step(self, number: int) -> None:
        import torch

        self.model.train()(**self.batch(number)).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def about(self) -> str:
        import torch
        import transformers

        return f"peer: torch {torch.__version__}, transformers {transformers.__version__}, SDPA, fused AdamW"


def load_examples(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "examples.npz") as file:
        return dict(file)


def serve(side: type, folder: Path, threads: int, pipe: Any) -> None:
    """Does what the pipe asks for, (method, *arguments); answers with the result and the seconds it took."""
    runner = side(folder, threads)
    with runner.session:
        while request := pipe.recv():
            method, *arguments = request
            began = time.perf_counter()
            result = getattr(runner, method)(*arguments)
            pipe.send((result, time.perf_counter() - began))


class Side:
    """A side's process."""

    def __init__(self, side: type, folder: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(side, folder, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a side that dies ends the wait for its answer

    def ask(self, *request: Any) -> Any:
        self.pipe.send(request)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def compare(shape: str, data_dir: Path, rounds: int, threads: int) -> str:
    """One row of the table; AssertionError where the losses differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(shape, data_dir, rounds + 1, folder)
        examples = load_examples(folder)
        tokens = np.diff(examples["offsets"])[examples["order"]].sum(1)[1:]
        ours, theirs = sides = Side(Ours, folder, threads), Side(Theirs, folder, threads)
        a, b = (side.ask("loss", 0)[0] for side in sides)
        assert abs(a - b) < 1e-5, f"{shape}: without dropout the loss is {a} here and {b} there"
        for side in sides:
            side.ask("step", 0)  # compiles, allocates
        times: dict[Side, list[float]] = {ours: [], theirs: []}
        for number in range(1, rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                times[side].append(side.ask("step", number)[1])
        for side in sides:
            print(f"{side.ask('about')[0]}; seconds {' '.join(f'{t:.3f}' for t in times[side])}")
            side.close()
    x, y = median(times[ours]), median(times[theirs])
    u, v = (median(tokens / np.array(times[side])) for side in sides)
    load = os.getloadavg()[0]
    cells = f"{1000 * x:,.0f} | {1000 * y:,.0f} | {y / x:.2f} | {u:,.0f} | {v:,.0f} | {load:.1f}"
    return f"| {shape} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MRPC, or the one above it")
    parser.add_argument("--shapes", nargs="+", default=["minilm", "base"])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps a side, at least 7")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.rounds < 7:
        parser.error("--rounds: a median of fewer than 7 says little")
    rows = [compare(shape, args.data_dir, args.rounds, args.threads) for shape in args.shapes]
    print(f"\n{args.threads} threads, {args.rounds} rounds, medians; padding is no token.\n")
    print("| shape | minibert ms | PyTorch ms | ratio | minibert tokens/s | PyTorch tokens/s | load |")
    print("|---|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
