"""Records transformers' logits, loss and gradients into model_<case>.npz, for tests/test_parity.py.

    pip install -e ".[peers]"
    MINIBERT_SHARED=... python tests/golden/record_model.py

transformers runs in fp32 with its eager attention, the sequences padded to the longest.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import parity
import torch
import transformers


def load_model(folder: Path) -> torch.nn.Module:
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    return load(folder, attn_implementation="eager")


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def versions() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}"


def record(case: str, folder: Path) -> None:
    model = load_model(folder)
    sequences = parity.model_batch(case)
    logits = model(**tensors(sequences.padded(np.arange(len(sequences.labels))))).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(sequences.labels).long())
    loss.backward()
    gradients = {name.removeprefix("bert."): p.grad.numpy() for name, p in model.named_parameters()}
    parity.save(
        parity.HERE / f"model_{case}.npz",
        parity.Brief.of(gradients),
        logits=logits.detach().numpy(),
        loss=loss.item(),
        versions=versions(),
    )
    print(case, "loss", loss.item(), "largest logit", logits.detach().abs().max().item())


if __name__ == "__main__":
    shared = Path(os.environ["MINIBERT_SHARED"])
    for case in parity.CASES:
        with tempfile.TemporaryDirectory() as folder:
            record(case, parity.write_checkpoint(case, Path(folder), shared))
