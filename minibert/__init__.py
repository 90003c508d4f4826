"""BERT fine-tuning from scratch: a small autograd over Numba kernels.

run = minibert.finetune("mrpc", sample=True); model = minibert.load(run.path); model.predict([("one", "other")])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minibert.errors import MinibertError

if TYPE_CHECKING:
    from minibert.finetuning import Run, finetune
    from minibert.model import Model, Prediction, load
    from minibert.seeds import finetune_seeds
    from minibert.squad.answering import Answerer, load_squad
    from minibert.squad.finetuning import SquadRun, finetune_squad

# Loaded on first use: importing minibert loads neither numpy nor numba.
_HOME = {
    "finetune": "finetuning", "finetune_seeds": "seeds", "Run": "finetuning",
    "load": "model", "Model": "model", "Prediction": "model",
    "finetune_squad": "squad.finetuning", "SquadRun": "squad.finetuning",
    "load_squad": "squad.answering", "Answerer": "squad.answering",
}  # fmt: skip

__all__ = [
    "Answerer", "MinibertError", "Model", "Prediction", "Run", "SquadRun",
    "finetune", "finetune_seeds", "finetune_squad", "load", "load_squad",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("minibert")
        except PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minibert.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not, and what every module has; not the modules behind them."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
