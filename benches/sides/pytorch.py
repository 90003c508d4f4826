"""PyTorch's side: transformers' BERT."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from sides import Call, Examples

ABOUT = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
RATE = 2e-5


class Model:
    """The checkpoint in `folder`; batches are padded to a multiple, 1 meaning their longest example."""

    def __init__(self, folder: Path, threads: int, precision: str, multiple: int, attention: str, device: str = "cpu"):
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if device == "gpu" else device)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        transformers.utils.logging.disable_progress_bar()
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        self.model = load(folder, attn_implementation=attention).to(self.device)
        self.examples = Examples(folder)
        self.multiple, self.precision, self.session = multiple, precision, nullcontext()

    def about(self) -> str:
        return ABOUT

    def batch(self, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        padded = self.examples.padded(numbers, self.multiple)
        return {name: torch.from_numpy(a).to(self.device, non_blocking=True) for name, a in padded.items()}


class Training(Model):
    """Forward, backward, clipping and fused AdamW; bf16 is autocast, `compiled` one torch.compile for all lengths.

    What was fastest of PyTorch's on a CPU: attention written out, for SDPA with dropout has no fused kernel there and
    falls back to slower products; autocast before oneDNN's own rounding of float32 products to bf16
    (set_float32_matmul_precision); lengths as they are before a compilation for each multiple of 32.
    """

    def __init__(self, *arguments: Any, compiled: bool = False, **options: Any):
        attention = "sdpa" if options.get("device") == "gpu" else "eager"
        super().__init__(*arguments, attention=attention, **options)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        self.call = torch.compile(self.model, dynamic=True) if compiled else self.model
        decayed, other = [], []
        for name, p in self.model.named_parameters():
            (other if "LayerNorm" in name or "bias" in name else decayed).append(p)
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-6, fused=True)

    def training_batch(self, number: int) -> dict[str, torch.Tensor]:
        numbers = self.examples.training_batch(number)
        labels = torch.from_numpy(self.examples.labels[numbers].astype(np.int64))
        return self.batch(numbers) | {"labels": labels.to(self.device, non_blocking=True)}

    def loss(self, number: int) -> float:
        """Without dropout."""
        with torch.inference_mode(), self.autocast:
            return self.model.eval()(**self.training_batch(number)).loss.item()

    def warm(self, calls: list[Call]) -> None:
        for number in self.examples.one_of_each_width(calls, self.multiple):
            self.steps([number])
        for call in calls if self.device.type == "cuda" else []:  # whose allocator keeps what it has once taken
            self.steps(call[1])

    def steps(self, numbers: Sequence[int]) -> float:
        losses = [self.step(number) for number in numbers]
        return losses[-1].item()

    def step(self, number: int) -> torch.Tensor:
        self.model.train()
        with self.autocast:
            loss = self.call(**self.training_batch(number)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Inference(Model):
    """Evaluation with SDPA; bf16 has weights and activations in it, `compiled` one torch.compile for all lengths."""

    def __init__(self, *arguments: Any, compiled: bool = False, **options: Any):
        super().__init__(*arguments, attention="sdpa", **options)
        self.model.eval()
        if self.precision == "bf16":
            self.model.bfloat16()
        self.call = torch.compile(self.model, dynamic=True) if compiled else self.model

    def warm(self, calls: list[Call]) -> None:
        self.logits()

    def logits(self) -> np.ndarray:
        """The logits of all examples, in batches of like length: (N, 2)."""
        with torch.inference_mode():
            rows = [self.call(**self.batch(numbers)).logits for numbers in self.examples.sorted_batches()]
            return torch.cat(rows).float().cpu().numpy()
