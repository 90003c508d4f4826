"""Speed of inference over MRPC's development set: minibert against PyTorch and ONNX Runtime.

    pip install ".[peers]" onnx onnxscript onnxruntime
    python benches/compare_inference.py --data-dir DIR [--device gpu]

A round takes the tokens of all 408 pairs to logits, in batches of 32 sorted by length, padded to the longest where a
side must pad. Models are loaded and everything is compiled before; all sides must give the same logits. The first
side meets each of the others in turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from sides import Examples, Kind, arguments, duels, prepare

NEAR = {"fp32": 1e-4, "bf16": 5e-2}  # how far apart logits may be, of the largest

SIDES: dict[str, Kind] = {
    "minibert-bf16": ("ours.Inference", {"precision": "bf16"}),
    "minibert-fp32": ("ours.Inference", {"precision": "fp32"}),
    "torch-fp32": ("pytorch.Inference", {"precision": "fp32", "multiple": 1}),
    "torch-bf16": ("pytorch.Inference", {"precision": "bf16", "multiple": 1}),
    "torch-compile-bf16": ("pytorch.Inference", {"precision": "bf16", "multiple": 1, "compiled": True}),
    "onnx-fp32": ("onnx_runtime.Inference", {"precision": "fp32"}),
}


def main() -> None:
    args = arguments(__doc__, SIDES, rounds=7)
    for model in args.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(model, args.data_dir, "dev", folder)
            tokens = [Examples(folder).lengths.sum()] * args.rounds
            duels(model, args, SIDES, folder, ("logits",), NEAR, [("logits",)] * args.rounds, tokens)


if __name__ == "__main__":
    main()
