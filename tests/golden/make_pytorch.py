"""Writes golden/pytorch/: small files by torch.save in both forms, and tensors.json with what they hold.

    pip install -e ".[peers]"
    python tests/golden/make_pytorch.py

tensors.json: torch's version, and for each file {name: [dtype, shape, SHA-256 of the bytes in C order]}.
"""

from __future__ import annotations

import collections
import hashlib
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name("pytorch")


def every_kind() -> dict[str, object]:
    """Each type; views with offsets and strides, several on one storage; Parameters; no elements; metadata."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    cube = torch.randn(3, 4, 5, generator=generator)
    state: dict[str, object] = {
        "base": base,
        "transposed": base.t(),
        "rows": base[1:3],
        "every other": cube[1:, ::2].transpose(0, 2),
        "tied": base,
        "parameter": torch.nn.Parameter(torch.randn(5, generator=generator)),
        "frozen": torch.nn.Parameter(torch.randn(2, 2, generator=generator), requires_grad=False),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 768),
        "epoch": 3,
        "shape": base.shape,
        "notes": ["no tensor", None, 0.5, True, 1 << 40],
    }
    tagged = torch.nn.Parameter(torch.ones(3))
    tagged.note = "an attribute"  # pickled by _rebuild_parameter_with_state
    state["tagged"] = tagged
    numbers = torch.randn(2, 3, generator=generator) * 50
    for dtype in "float16 bfloat16 float64 int8 int16 int32 int64 bool".split():
        state[dtype] = numbers.to(getattr(torch, dtype))
    for dtype in "uint8 uint16 uint32 uint64".split():
        state[dtype] = numbers.abs().to(getattr(torch, dtype))
    return state


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        collections.OrderedDict(dense=torch.nn.Linear(4, 3), norm=torch.nn.BatchNorm1d(3), out=torch.nn.Linear(3, 2))
    )


def training() -> dict[str, object]:
    """What training scripts save: the state dict beside the optimizer's."""
    model = module()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def described(tensor: torch.Tensor) -> list[object]:
    stored = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), hashlib.sha256(stored).hexdigest()]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    files = {}
    for name, content, options in (
        ("zip", every_kind(), {}),
        ("zip-protocol4", every_kind(), {"pickle_protocol": 4}),
        ("legacy", every_kind(), {"_use_new_zipfile_serialization": False}),
        ("legacy-protocol4", every_kind(), {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}),
        ("module", module().state_dict(), {}),
        ("module-legacy", module().state_dict(), {"_use_new_zipfile_serialization": False}),
        ("training", training(), {}),
    ):
        torch.save(content, FOLDER / f"{name}.bin", **options)
        tensors = content.get("model_state_dict", content)
        files[name] = {key: described(value) for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    text = json.dumps({"torch": torch.__version__, "files": files}, indent=1)
    (FOLDER / "tensors.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
