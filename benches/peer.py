"""transformers + PyTorch fine-tuning MRPC with Google's optimizer: the peer in accuracy and in whole runs.

    pip install ".[peers]"
    python benches/peer.py mrpc --checkpoint DIR --data-dir DIR --learning-rate 5e-5 --seeds 5

One JSON line a seed. The optimizer is that of google-research/bert, optimization.py, written out in PyTorch, or with
--recipe stable PyTorch's fused AdamW; bf16 is autocast. Model, head, tokenizer and dropout are transformers' own,
batches padded to the longest. Attention is written out: with dropout SDPA has no fused kernel on a CPU and is slower.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

WARMUP, DECAY, BETA1, BETA2, EPSILON = 0.1, 0.01, 0.9, 0.999, 1e-6


def learning_rate(step: int, steps: int, peak: float, recipe: str, warmup: float = WARMUP) -> float:
    """The rate of update `step`, 0 to steps - 1; Google's drops by a tenth when the warm-up ends."""
    warm = int(steps * warmup)
    if step < warm:
        return peak * step / warm
    return peak * ((1 - step / steps) if recipe == "google" else (steps - step) / max(1, steps - warm))


class GoogleAdam:
    """AdamWeightDecayOptimizer behind clip_by_global_norm(1.0)."""

    def __init__(self, model: torch.nn.Module):
        named = list(model.named_parameters())
        self.parameters = [p for _, p in named]
        self.decays = [0.0 if "LayerNorm" in name or "bias" in name else DECAY for name, _ in named]
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the parameters' gradients, which it clears."""
        norm = torch.sqrt(sum((p.grad**2).sum() for p in self.parameters)).item()
        for p, m, v, decay in zip(self.parameters, self.m, self.v, self.decays, strict=True):
            g = p.grad / max(norm, 1.0)
            m.mul_(BETA1).add_(g, alpha=1 - BETA1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            p -= rate * (m / (v.sqrt() + EPSILON) + decay * p)
            p.grad = None


class RoundedProducts(TorchDispatchMode):
    """Products of bf16 in float32 and then rounded, which is what bf16's are but for the order of sums."""

    PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in self.PRODUCTS or args[-1].dtype != torch.bfloat16:
            return function(*args, **(kwargs or {}))
        return function(*(array.float() for array in args), **(kwargs or {})).bfloat16()


def bf16_products() -> AbstractContextManager:
    """PyTorch's own where the CPU has instructions for them; where it has not, a step would take a minute."""
    return nullcontext() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else RoundedProducts()


class StableAdam:
    """Adam with bias correction behind the same clipping, by PyTorch's own fused kernels."""

    def __init__(self, model: torch.nn.Module):
        self.parameters = list(model.parameters())
        decayed, other = [], []
        for name, p in model.named_parameters():
            (other if "LayerNorm" in name or "bias" in name else decayed).append(p)
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": other, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, betas=(BETA1, BETA2), eps=EPSILON, fused=True)

    def step(self, rate: float) -> None:
        """One update from the parameters' gradients, which it clears."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad()


def read_mrpc(data_dir: Path, split: str) -> tuple[list[str], list[str], np.ndarray]:
    """First sentences, second sentences and labels of MRPC's `split`.tsv; no quoting, as Google reads it."""
    folder = data_dir / "MRPC" if (data_dir / "MRPC").is_dir() else data_dir
    lines = (folder / f"{split}.tsv").read_text(encoding="utf-8-sig").splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return [r[3] for r in rows], [r[4] for r in rows], np.array([int(r[0]) for r in rows])


class Data:
    """A split of MRPC, tokenized; `batch` pads to the longest of the examples asked for."""

    def __init__(self, tokenizer: Any, data_dir: Path, split: str, longest: int):
        first, second, self.labels = read_mrpc(data_dir, split)
        self.tokenizer = tokenizer
        self.features = tokenizer(first, second, truncation=True, max_length=longest)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, numbers: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = {name: [values[n] for n in numbers] for name, values in self.features.items()}
        padded = self.tokenizer.pad(rows, padding="longest", return_tensors="pt")
        return dict(padded), torch.from_numpy(self.labels[numbers])


def scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    both = int(((predicted == 1) & (labels == 1)).sum())
    f1 = 2 * both / max(1, int((predicted == 1).sum() + (labels == 1).sum()))
    return {"accuracy": float((predicted == labels).mean()), "f1": f1}


def batches(count: int, size: int, epochs: float, seed: int) -> Iterator[np.ndarray]:
    """Google's number of batches, int(count / size * epochs), from shuffled epochs one after the other."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(count) for _ in range(int(np.ceil(epochs)))])
    for step in range(int(count / size * epochs)):
        yield order[step * size : (step + 1) * size]


def fine_tune(train: Data, dev: Data, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Trains from the checkpoint; the scores on the development set and the seconds of training."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.checkpoint, num_labels=2, classifier_dropout=0.1, attn_implementation="eager"
    )
    model.train()
    optimizer = GoogleAdam(model) if args.recipe == "google" else StableAdam(model)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
    order = list(batches(len(train), args.batch_size, args.epochs, seed))
    began = time.perf_counter()
    for step, numbers in enumerate(order):
        inputs, labels = train.batch(numbers)
        with autocast:
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
        loss.backward()
        optimizer.step(learning_rate(step, len(order), args.learning_rate, args.recipe))
    seconds = time.perf_counter() - began
    model.eval()
    with torch.inference_mode(), autocast:
        slices = np.array_split(np.arange(len(dev)), len(dev) // args.batch_size)
        predicted = np.concatenate([model(**dev.batch(s)[0]).logits.argmax(1).numpy() for s in slices])
    if args.output_dir:
        model.save_pretrained(args.output_dir)
        train.tokenizer.save_pretrained(args.output_dir)
    return {**scores(predicted, dev.labels), "seconds": round(seconds, 1), "steps": len(order)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["mrpc"])
    parser.add_argument("--checkpoint", required=True, help="directory in Hugging Face's form")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MRPC, or the one above it")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-seq-length", type=int, default=128)
    parser.add_argument("--recipe", choices=["google", "stable"], default="google")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--output-dir", type=Path, help="where the model is saved, the last one if there are seeds")
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: PyTorch's, one a core")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
    train, dev = (Data(tokenizer, args.data_dir, split, args.max_seq_length) for split in ("train", "dev"))
    about = {"peer": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    about |= {"threads": torch.get_num_threads(), "recipe": args.recipe, "precision": args.precision}
    about |= {"learning_rate": args.learning_rate}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        print(json.dumps({"seed": seed, **fine_tune(train, dev, args, seed), **about}), flush=True)


if __name__ == "__main__":
    main()
