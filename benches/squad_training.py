"""One fine-tuning on windows of SQuAD 1.1, by minibert or by transformers + PyTorch; prints a JSON line.

    python benches/squad_training.py minibert --checkpoint DIR --data-dir DIR --windows 12000

Both sides train on the same windows in the same order, from the same weights of the head, one epoch of 12 under
Google's schedule and Adam, and their logits go the same way to answers and to the official metrics. What differs is
what is measured: the computation, and with dropout its masks. transformers' loss counts padded places among those where
an answer may be; here it is taken over real tokens, as minibert, which has no padding, takes it.
squad_seeds.py makes tables of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sides import peak_memory

from minibert import checkpoint
from minibert.checkpoint import names
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.model import tokenizer_of
from minibert.random import initial_weights, order
from minibert.squad import metrics, reading, spans, windows
from minibert.squad.evaluation import golds
from minibert.squad.reader import Reader, tops
from minibert.squad.settings import SquadConfig
from minibert.squad.spans import Top
from minibert.squad.windows import Windows
from minibert.squad.words import offsets_of, ranges
from minibert.tokenizer import Features
from minibert.training import Stage, Trainer

N_BEST, INFERENCE_BATCH = 20, 32
COMPARED = 100  # losses that are kept
SAVED = 50  # steps of PyTorch's, a few minutes, from one saved state to the next


class Problem:
    """What both sides share: weights, windows and their order, questions to answer."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.found = args, checkpoint.load(args.checkpoint, spans=True)
        rate = args.dropout
        self.config = dataclasses.replace(
            self.found.config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
        )
        self.tokenizer = tokenizer_of(self.found)
        self.settings = SquadConfig(
            task="squad", epochs=1, learning_rate=args.learning_rate, precision=args.precision, seed=args.seed
        )
        self.train = self._some_windows()
        dev = reading.read(args.data_dir / "dev-v1.1.json")
        self.dev = dataclasses.replace(dev, questions=dev.questions[: args.dev_questions])

    def _some_windows(self) -> Split:
        """As many windows of the training file as are asked for, the same for every seed."""
        questions = reading.read(self.args.data_dir / "train-v1.1.json")
        made = windows.prepare(questions, self.tokenizer, self.settings.lengths, negative=False)
        chosen = np.sort(order(len(made), 0, 0)[: self.args.windows])
        offsets = made.features.offsets
        lengths = np.diff(offsets)[chosen]
        here = ranges(offsets[chosen], lengths)
        features = Features(made.features.ids[here], made.features.segments[here], offsets_of(lengths))
        return Split("train", features, made.labels[chosen])

    @cached_property
    def dev_windows(self) -> Windows:
        return windows.make(self.dev, self.tokenizer, self.settings.lengths)

    def weights(self) -> dict[str, np.ndarray]:
        """The checkpoint's, with a head that the seed draws."""
        shapes = names.shapes(self.config, spans=True)
        head = {name: shapes[name] for name in names.SPANS}
        return self.found.arrays | initial_weights(head, self.config.initializer_range, self.args.seed)

    def score(self, found: Iterator[Top]) -> dict[str, float]:
        """Exact match and F1 of what these logits answer; nothing after a training that was cut short."""
        if self.args.steps:
            return {}
        predictions = spans.predict([(self.dev, self.dev_windows)], found, self.tokenizer, n_best=N_BEST)
        return metrics.evaluate_squad(golds([self.dev]), {one.id: one.best for one in predictions})


def minibert(problem: Problem) -> dict[str, Any]:
    device = devices.open("cpu", threads=problem.args.threads, precision=problem.args.precision)
    reader = Reader(problem.config, device)
    reader.fill(problem.weights())
    trainer = Trainer(reader, problem.train, problem.settings)
    began = time.perf_counter()
    with device.session():
        losses = [trainer.step(step).loss for step in range(problem.args.steps or trainer.total)]
    seconds = time.perf_counter() - began
    scores = problem.score(tops(reader, [problem.dev_windows.features], N_BEST))
    return {"losses": losses[:COMPARED], "training_seconds": seconds, **scores, "by": "minibert"}


def transformers(problem: Problem) -> dict[str, Any]:
    # It would take a checkout's folder `kernels` for the package of that name; minibert finds its own without.
    checkout = Path(__file__).parents[1]
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != checkout.resolve()]
    import peer
    import torch
    import transformers

    args = problem.args
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, problem.config, problem.weights())
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager")
    optimizer = peer.GoogleAdam(model)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
    stage = Stage(problem.train, 1.0, problem.settings)  # for its order

    def logits(features: Features, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(S, 2, L), -inf where there is padding, and where there is none, (S, L)."""
        inputs = padded(features, numbers)
        here = torch.from_numpy(inputs["attention_mask"] > 0)
        with autocast:
            made = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        both = torch.stack([made.start_logits, made.end_logits], 1).float()
        return both.masked_fill(~here[:, None], -torch.inf), here

    def answers(made: Windows) -> Iterator[Top]:
        """Of the windows in their order, computed in batches of like length."""
        kernel = devices.open("reference").top_logits
        values = np.empty((len(made), 2, N_BEST), np.float32)
        places, null = np.empty(values.shape, np.int32), np.empty((len(made), 2), np.float32)
        by_length = np.argsort(np.diff(made.features.offsets), kind="stable")
        for numbers in np.array_split(by_length, -(-len(by_length) // INFERENCE_BATCH)):
            found, here = logits(made.features, numbers)
            packed = found.transpose(1, 2)[here].numpy()
            best = np.empty((2, len(numbers), 2, N_BEST), np.float32)
            at = np.empty(best.shape[1:], np.int32)
            kernel.forward(best[0], at, packed, offsets_of(here.sum(1).numpy()).astype(np.int32))
            values[numbers], places[numbers], null[numbers] = best[0], at, found[:, :, 0].numpy()
        yield Top(values, places, null)

    named = {"model": model.state_dict(), "m": optimizer.m, "v": optimizer.v}  # all of them change in place
    losses, seconds = [], 0.0
    if args.state and args.state.exists():
        saved = torch.load(args.state, weights_only=True)
        for here, there in zip(tensors(named), tensors(saved), strict=True):
            here.copy_(there)
        torch.set_rng_state(saved["random"])
        losses, seconds = saved["losses"], saved["seconds"]
    model.train()
    began = time.perf_counter() - seconds
    for step in range(len(losses), args.steps or stage.total):
        numbers = stage.numbers(step)
        labels = torch.from_numpy(problem.train.labels[numbers].astype(np.int64))
        with peer.bf16_products():
            both, _ = logits(problem.train.features, numbers)
            loss = torch.nn.functional.cross_entropy(both.flatten(0, 1), labels.flatten())
            loss.backward()
        optimizer.step(peer.learning_rate(step, stage.total, args.learning_rate, "google"))
        losses.append(loss.item())
        seconds = time.perf_counter() - began
        if args.state and len(losses) % SAVED == 0:
            rest = {"random": torch.get_rng_state(), "losses": losses, "seconds": seconds}
            torch.save(named | rest, part := args.state.with_suffix(".part"))
            part.replace(args.state)
    model.eval()
    with torch.inference_mode(), peer.bf16_products():
        scores = problem.score(answers(problem.dev_windows))
    by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return {"losses": losses[:COMPARED], "training_seconds": seconds, **scores, "by": by}


def tensors(named: dict[str, Any]) -> list[Any]:
    """The weights and moments in a saved state, in its order."""
    return [*named["model"].values(), *named["m"], *named["v"]]


def padded(features: Features, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """ids, segments and mask of these windows, (S, longest) int64, by transformers' names."""
    starts = features.offsets[numbers]
    lengths = features.offsets[numbers + 1] - starts
    places = np.arange(lengths.max())
    here = places < lengths[:, None]
    arrays = {"attention_mask": here.astype(np.int64)}
    for name, source in (("input_ids", features.ids), ("token_type_ids", features.segments)):
        arrays[name] = np.zeros(here.shape, np.int64)
        arrays[name][here] = source[(starts[:, None] + places)[here]]
    return arrays


def arguments(parser: argparse.ArgumentParser) -> None:
    """The settings that squad_seeds.py hands on."""
    parser.add_argument("--checkpoint", required=True, help="directory in Hugging Face's form")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of train-v1.1.json and dev-v1.1.json")
    parser.add_argument("--windows", type=int, default=12000, help="of the training file, to train on")
    parser.add_argument("--dev-questions", type=int, help="answer only so many; default: all")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["minibert", "transformers"])
    arguments(parser)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="stop after so many of the epoch's, and answer nothing")
    parser.add_argument("--state", type=Path, help="file in which PyTorch's side keeps its state, and goes on from it")
    args = parser.parse_args()
    train = {"minibert": minibert, "transformers": transformers}[args.side]
    print(json.dumps({**train(Problem(args)), "threads": args.threads, "peak_mib": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
