"""Shapes and the uncased vocabulary that ship with the package: what needs no weights needs no network.

The configs and the vocabulary are Google's (Apache License 2.0). BERT Base, Large, the miniatures and MiniLM
share the vocabulary. Beside them stand the ids of the pairs that make up GLUE's development set of MRPC.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minibert.config import BertConfig
from minibert.errors import ConfigError
from minibert.files import read_json

FOLDER = Path(__file__).parent
VOCAB = FOLDER / "vocab.txt"

# name: layers, hidden size, heads. The feed-forward is four times as wide; all else is as in Base.
SMALL = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "minilm": (6, 384, 12),
}
NAMES = ("base", "large", *SMALL)


def config(name: str) -> BertConfig:
    """The config of base, large, tiny, mini, small, medium or minilm."""
    if name in SMALL:
        layers, hidden, heads = SMALL[name]
        return dataclasses.replace(
            config("base"),
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
        )
    if name not in NAMES:
        raise ConfigError(f"there is no model shape {name!r}: choose from {', '.join(NAMES)}")
    path = FOLDER / name / "config.json"
    return BertConfig.from_dict(read_json(path, ConfigError), str(path))
