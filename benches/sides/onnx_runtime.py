"""ONNX Runtime's side: transformers' BERT, exported by PyTorch."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from sides import Call, Examples

ABOUT = f"ONNX Runtime {onnxruntime.__version__}"


class Inference:
    """Evaluation in fp32, every graph optimisation on; batches are padded to their longest example."""

    def __init__(self, folder: Path, threads: int, precision: str):
        assert precision == "fp32"
        self.examples, self.session = Examples(folder), nullcontext()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.graph = onnxruntime.InferenceSession(self.export(folder), options, providers=["CPUExecutionProvider"])

    def export(self, folder: Path) -> Path:
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        model, path = load(folder, attn_implementation="eager").eval(), folder / "model.onnx"
        example = {name: torch.from_numpy(a) for name, a in self.examples.padded(np.arange(3), 1).items()}
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about its own deprecated calls
            torch.onnx.export(
                model, (), path, kwargs=example, dynamo=True, verbose=False,
                output_names=["logits"], dynamic_shapes={name: sizes for name in example},
            )  # fmt: skip
        return path

    def about(self) -> str:
        return ABOUT

    def warm(self, calls: list[Call]) -> None:
        self.logits()

    def logits(self) -> np.ndarray:
        """The logits of all examples, in batches of like length: (N, 2)."""
        batches = self.examples.sorted_batches()
        return np.concatenate([self.graph.run(["logits"], self.examples.padded(n, 1))[0] for n in batches])
