"""Speed of a training step on real MRPC batches of 32: minibert against transformers + PyTorch, in fp32 and bf16.

    pip install -e ".[peers]"
    python benches/compare_step.py --data-dir DIR

Random weights of the shapes of MiniLM and Base. Each side has a process of its own, all cores, and the same
batches; they take turns. A step is forward, backward, clipping and the update, dropout on. PyTorch pads to the
longest of the batch, or to 128 as Google's code did, runs SDPA and its fused AdamW, and in bf16 has autocast.
First all must give one loss without dropout. The names of the sides are --sides.
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
NEAR = {"fp32": 1e-5, "bf16": 2e-2}  # how far apart losses without dropout may be


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

    def __init__(self, folder: Path, threads: int, precision: str, padding: str):
        from minibert import checkpoint
        from minibert.bert import Bert
        from minibert.evaluation import Split
        from minibert.kernels import devices
        from minibert.settings import TrainConfig
        from minibert.tokenizer import Features
        from minibert.training import Trainer

        found, self.examples = checkpoint.load(folder), load_examples(folder)
        bert = Bert(found.config, 2, devices.open("cpu", threads=threads, precision=precision))
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

    def __init__(self, folder: Path, threads: int, precision: str, padding: str):
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        self.model = load(folder, attn_implementation="sdpa")
        self.examples, self.session = load_examples(folder), nullcontext()
        self.to_length = padding == "128"
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        decayed, other = [], []
        for name, p in self.model.named_parameters():
            (other if "LayerNorm" in name or "bias" in name else decayed).append(p)
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-6, fused=True)

    def batch(self, number: int) -> dict[str, Any]:
        import torch

        offsets, numbers = self.examples["offsets"], self.examples["order"][number]
        lengths = offsets[numbers + 1] - offsets[numbers]
        places = np.arange(LENGTH if self.to_length else lengths.max())
        here = places < lengths[:, None]
        inputs = {"attention_mask": torch.from_numpy(here.astype(np.int64))}
        for name, source in (("input_ids", "ids"), ("token_type_ids", "segments")):
            padded = np.zeros(here.shape, np.int64)
            padded[here] = self.examples[source][(offsets[numbers][:, None] + places)[here]]
            inputs[name] = torch.from_numpy(padded)
        return inputs | {"labels": torch.from_numpy(self.examples["labels"][numbers].astype(np.int64))}

    def loss(self, number: int) -> float:
        import torch

        with torch.inference_mode(), self.autocast:
            return self.model.eval()(**self.batch(number)).loss.item()

    def step(self, number: int) -> None:
        import torch

        with self.autocast:
            loss = self.model.train()(**self.batch(number)).loss
        loss.backward()
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


# Name: class, precision, padding.
SIDES = {
    "minibert-fp32": (Ours, "fp32", "none"),
    "minibert-bf16": (Ours, "bf16", "none"),
    "torch-fp32": (Theirs, "fp32", "longest"),
    "torch-fp32-128": (Theirs, "fp32", "128"),
    "torch-bf16": (Theirs, "bf16", "longest"),
}


def serve(side: str, folder: Path, threads: int, pipe: Any) -> None:
    """Does what the pipe asks for, (method, *arguments); answers with the result and the seconds it took."""
    kind, precision, padding = SIDES[side]
    runner = kind(folder, threads, precision, padding)
    with runner.session:
        while request := pipe.recv():
            method, *arguments = request
            began = time.perf_counter()
            result = getattr(runner, method)(*arguments)
            pipe.send((result, time.perf_counter() - began))


class Side:
    """A side's process."""

    def __init__(self, side: str, folder: Path, threads: int):
        self.name = side
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


def compare(shape: str, names: list[str], data_dir: Path, rounds: int, threads: int) -> list[str]:
    """The rows of the table for one shape; AssertionError where the losses differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(shape, data_dir, rounds + 1, folder)
        examples = load_examples(folder)
        tokens = np.diff(examples["offsets"])[examples["order"]].sum(1)[1:]
        sides = [Side(side, folder, threads) for side in names]
        losses = {side.name: side.ask("loss", 0)[0] for side in sides}
        for side, loss in losses.items():
            apart = abs(loss - losses[names[0]])
            assert apart < max(NEAR[SIDES[s][1]] for s in (side, names[0])), f"{shape}: without dropout {losses}"
        for side in sides:
            side.ask("step", 0)  # compiles, allocates
        times: dict[str, list[float]] = {side: [] for side in names}
        for number in range(1, rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                times[side.name].append(side.ask("step", number)[1])
        for side in sides:
            print(f"{side.name}: {side.ask('about')[0]}; seconds {' '.join(f'{t:.3f}' for t in times[side.name])}")
            side.close()
    load, rows = os.getloadavg()[0], []
    first = median(times[names[0]])
    for side in names:
        seconds, speed = median(times[side]), median(tokens / np.array(times[side]))
        rows.append(f"| {shape} | {side} | {1000 * seconds:,.0f} | {seconds / first:.2f} | {speed:,.0f} | {load:.1f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MRPC, or the one above it")
    parser.add_argument("--shapes", nargs="+", default=["minilm", "base"])
    parser.add_argument("--sides", nargs="+", default=["minibert-fp32", "torch-fp32"], choices=SIDES)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps a side, at least 7")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.rounds < 7:
        parser.error("--rounds: a median of fewer than 7 says little")
    rows = [
        row for shape in args.shapes for row in compare(shape, args.sides, args.data_dir, args.rounds, args.threads)
    ]
    print(f"\n{args.threads} threads, {args.rounds} rounds, medians; padding is no token.\n")
    print(
        "| shape | side | ms a step | times the first's | tokens/s | load |",
        "|---|---|---|---|---|---|",
        *rows,
        sep="\n",
    )


if __name__ == "__main__":
    main()
