"""Records losses of transformers trained with Google's optimizer, for tests/test_parity.py.

    pip install -e ".[peers]"
    MINIBERT_SHARED=... PYTHONPATH=benches python tests/golden/record_training.py

Ten steps at full rate from the first (steps_losses.json, and how far they moved each parameter in
moved_<case>.npz) and the first hundred of MRPC with MiniLM (mrpc_losses.json); no dropout, fp32. The optimizer is
benches/peer.py's.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import parity
import torch
import transformers
from peer import Data, GoogleAdam, learning_rate
from record_model import load_model, tensors, versions

from minibert.random import order


def train_step(model: torch.nn.Module, optimizer: GoogleAdam, inputs: dict, labels: torch.Tensor, rate: float) -> float:
    """One update; the loss before it."""
    loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
    loss.backward()
    optimizer.step(rate)
    return loss.item()


def record_steps(case: str, shared: Path) -> dict[str, list[float]]:
    """The losses of the ten steps, with training and without; writes how far the parameters moved."""
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(parity.write_checkpoint(case, Path(folder), shared)).train()
    before = parameters(model)
    losses = {"untrained": train(case, model, 0.0), "losses": train(case, model, parity.RATES[case])}
    moved = {name: p - before[name] for name, p in parameters(model).items()}
    parity.save(parity.HERE / f"moved_{case}.npz", parity.Brief.of(moved), versions=versions())
    return losses


def train(case: str, model: torch.nn.Module, peak: float) -> list[float]:
    """Trains parity.STEPS steps without warm-up; the losses."""
    optimizer, sequences, losses = GoogleAdam(model), parity.training_sequences(case), []
    shuffled = order(len(sequences.labels), parity.STEPS_SEED, 0)
    for step, numbers in enumerate(shuffled.reshape(parity.STEPS, parity.STEP_SEQUENCES)):
        labels = torch.from_numpy(sequences.labels[numbers]).long()
        rate = learning_rate(step, parity.STEPS, peak, "google", warmup=0)
        losses.append(train_step(model, optimizer, tensors(sequences.padded(numbers)), labels, rate))
    return losses


def parameters(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """By minibert's names, in float64: differences of these are exact."""
    return {name.removeprefix("bert."): p.detach().double().numpy() for name, p in model.named_parameters()}


def record_mrpc(folder: Path, data_dir: Path) -> list[float]:
    """The first losses of MRPC, examples in minibert's order."""
    setting = parity.MRPC
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    data = Data(tokenizer, data_dir, "train", setting["max_seq_length"])
    model = load_model(folder).train()
    optimizer, losses, size = GoogleAdam(model), [], setting["batch_size"]
    total = int(len(data) / size * setting["epochs"])
    numbers = order(len(data), setting["seed"], 0)
    for step in range(setting["steps"]):
        inputs, labels = data.batch(numbers[step * size : (step + 1) * size])
        rate = learning_rate(step, total, setting["learning_rate"], "google")
        losses.append(train_step(model, optimizer, inputs, labels, rate))
    return losses


def write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    shared = Path(os.environ["MINIBERT_SHARED"])
    steps = {case: record_steps(case, shared) for case in parity.CASES}
    write(parity.STEPS_FILE, {"versions": versions(), **steps})
    with tempfile.TemporaryDirectory() as folder:
        mrpc = record_mrpc(parity.write_minilm(Path(folder), shared), shared / "data/glue")
    write(parity.MRPC_FILE, {"versions": versions(), "settings": parity.MRPC, "losses": mrpc})
    print(json.dumps(steps, indent=1), np.round(mrpc, 3).tolist())
