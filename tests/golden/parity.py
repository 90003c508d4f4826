"""What parity with transformers is recorded and tested on: keyed models and batches, and gradients in brief.

NumPy only. The recording scripts and tests/test_parity.py share it, so both sides build the same input. A
gradient is kept as its norm, three keyed projections and 64 of its entries; from these `difference` estimates
the norm of the difference over the norm.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
PROJECTIONS, ENTRIES = 3, 64
KEY_BIAS = "attention.self.key.bias"  # its exact gradient is zero: the softmax does not see what all keys share
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
SMALL = {
    "model_type": "bert",
    "vocab_size": 997,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 320,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    **NO_DROPOUT,
}
# The two forms of GELU: "gelu" is erf, "gelu_new" is tanh.
CASES = {"small_erf": "gelu", "small_tanh": "gelu_new", "minilm": None}
MINILM = Path("checkpoints/all-MiniLM-L6-v2")  # under $MINIBERT_SHARED
LENGTHS = (33, 1, 2, 17, 64, 31, 40)  # of the sequences whose gradients are recorded

# Ten steps at full rate from the first, eight sequences each, in minibert's order for the seed.
STEPS, STEP_SEQUENCES, STEPS_SEED = 10, 8, 5
STEPS_FILE = HERE / "steps_losses.json"
RATES = {"small_erf": 1e-3, "small_tanh": 1e-3, "minilm": 5e-5}

# The first hundred losses of a fine-tuning: minibert's order of examples for this seed, Google's recipe.
MRPC = {"steps": 100, "batch_size": 32, "learning_rate": 5e-5, "max_seq_length": 128, "epochs": 3, "seed": 1}
MRPC_FILE = HERE / "mrpc_losses.json"


def bits(seed: int, name: str, count: int) -> np.ndarray:
    """`count` keyed 64-bit words from NumPy's raw Philox: its stream is fixed, unlike its distributions'."""
    return np.random.Philox(key=[seed, zlib.crc32(name.encode())]).random_raw(count)


def uniform(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """float32 between -sqrt(3) std and sqrt(3) std, by exact arithmetic: the same bits on every machine."""
    unit = (bits(seed, name, math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return (math.sqrt(3) * std * unit).astype(np.float32).reshape(shape)


def small_weights(seed: int = 7, classes: int = 3) -> dict[str, np.ndarray]:
    """The small model's parameters by checkpoint name; nothing is 0 or 1, so that every gradient matters."""
    c, f = SMALL["hidden_size"], SMALL["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (SMALL["vocab_size"], c),
        "embeddings.position_embeddings.weight": (SMALL["max_position_embeddings"], c),
        "embeddings.token_type_embeddings.weight": (SMALL["type_vocab_size"], c),
        **{f"embeddings.LayerNorm.{kind}": (c,) for kind in ("weight", "bias")},
    }
    for i in range(SMALL["num_hidden_layers"]):
        dense = {f"attention.self.{part}": (c, c) for part in ("query", "key", "value")}
        dense |= {"attention.output.dense": (c, c), "intermediate.dense": (f, c), "output.dense": (c, f)}
        for part, shape in dense.items():
            shapes |= {f"encoder.layer.{i}.{part}.weight": shape, f"encoder.layer.{i}.{part}.bias": shape[:1]}
        for part in ("attention.output", "output"):
            shapes |= {f"encoder.layer.{i}.{part}.LayerNorm.{kind}": (c,) for kind in ("weight", "bias")}
    shapes |= {"pooler.dense.weight": (c, c), "pooler.dense.bias": (c,)}
    weights = {name: uniform(seed, name, shape, 0.1) for name, shape in shapes.items()}
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name] += 1
    return weights | head(c, classes, seed)


def head(hidden: int, classes: int, seed: int = 7, std: float = 0.1) -> dict[str, np.ndarray]:
    """A classification head from a key."""
    return {
        "classifier.weight": uniform(seed, "classifier.weight", (classes, hidden), std),
        "classifier.bias": uniform(seed, "classifier.bias", (classes,), std),
    }


def write_checkpoint(case: str, folder: Path, shared: Path | None = None) -> Path:
    """The case's model as a directory that transformers and minibert both load, with all dropout rates 0."""
    if case == "minilm":
        assert shared is not None
        return write_minilm(folder, shared, head_std=0.1)
    tensors = small_weights()
    config = SMALL | {"hidden_act": CASES[case]}
    return _write(folder, config, tensors)


def write_minilm(folder: Path, shared: Path, head_std: float = 0.02) -> Path:
    """MiniLM with a two-class head from a key and all dropout rates 0; its tokenizer's files come along."""
    source = shared / MINILM
    config = json.loads((source / "config.json").read_text()) | NO_DROPOUT
    tensors = load_file(source / "model.safetensors")
    tensors.pop("embeddings.position_ids")  # a constant, not a parameter
    _write(folder, config, tensors | head(config["hidden_size"], 2, std=head_std))
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def _write(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    labels = [str(i) for i in range(len(tensors["classifier.bias"]))]
    config = config | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    named = {k if k.startswith("classifier.") else f"bert.{k}": v for k, v in tensors.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass(frozen=True)
class Sequences:
    """Token numbers and segments of sequences end to end, where each begins (S + 1), and a class for each."""

    ids: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    @classmethod
    def from_key(cls, name: str, lengths: tuple[int, ...], vocab: int, classes: int) -> Sequences:
        """Tokens from 1 to vocab - 1: 0 is [PAD], whose row transformers gives no gradient."""
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ids = 1 + bits(11, f"{name} ids", int(offsets[-1])) % np.uint64(vocab - 1)
        segments = np.concatenate([np.arange(n) >= (n + 1) // 2 for n in lengths])
        labels = bits(11, f"{name} labels", len(lengths)) % np.uint64(classes)
        return cls(ids.astype(np.int32), segments.astype(np.int32), offsets, labels.astype(np.int32))

    def padded(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The sequences of these numbers as transformers takes them, padded to the longest."""
        rows = [slice(self.offsets[n], self.offsets[n + 1]) for n in numbers]
        shape = (len(rows), max(row.stop - row.start for row in rows))
        out = {k: np.zeros(shape, np.int64) for k in ("input_ids", "token_type_ids", "attention_mask")}
        for i, row in enumerate(rows):
            n = row.stop - row.start
            out["input_ids"][i, :n], out["token_type_ids"][i, :n] = self.ids[row], self.segments[row]
            out["attention_mask"][i, :n] = 1
        return out


def model_batch(case: str) -> Sequences:
    """The sequences whose logits and gradients are recorded."""
    vocab, classes = (30522, 2) if case == "minilm" else (SMALL["vocab_size"], 3)
    return Sequences.from_key(f"{case} model", LENGTHS, vocab, classes)


def training_sequences(case: str) -> Sequences:
    """What the ten steps train on. Few words, so that there is something to learn."""
    vocab, classes = (2000, 2) if case == "minilm" else (100, 3)
    count = STEPS * STEP_SEQUENCES
    lengths = tuple(1 + (bits(11, f"{case} lengths", count) % np.uint64(60)).astype(int))
    return Sequences.from_key(f"{case} training", lengths, vocab, classes)


@dataclass(frozen=True)
class Brief:
    """What is kept of P tensors: norms (P,), projections on keyed random signs (P, 3), entries (P, 64).

    The entries stand at `positions` (P, 64) of the flat tensor, drawn by key from its `nonzero` (P,) non-zero
    ones: an embedding's gradient is zero almost everywhere.
    """

    names: np.ndarray
    norms: np.ndarray
    projections: np.ndarray
    nonzero: np.ndarray
    positions: np.ndarray
    entries: np.ndarray

    @classmethod
    def of(cls, tensors: dict[str, np.ndarray]) -> Brief:
        names = sorted(tensors)
        flat = [tensors[name].reshape(-1) for name in names]
        where = [np.flatnonzero(x) for x in flat]
        drawn = [bits(13, f"{name} entries", ENTRIES) for name in names]
        positions = np.stack([w[d % np.uint64(len(w))] for w, d in zip(where, drawn, strict=True)])
        return cls(
            np.array(names),
            np.array([norm(x) for x in flat]),
            np.stack([project(name, x) for name, x in zip(names, flat, strict=True)]),
            np.array([len(w) for w in where]),
            positions,
            np.stack([x[p] for x, p in zip(flat, positions, strict=True)]),
        )


def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def project(name: str, x: np.ndarray) -> np.ndarray:
    """The sums of x with keyed random signs, three times: (3,) float64."""
    words = bits(13, f"{name} signs", PROJECTIONS * (-(-x.size // 64))).reshape(PROJECTIONS, -1)
    signs = np.unpackbits(words.view(np.uint8), axis=1, count=x.size).astype(np.float32)
    return (2.0 * signs - 1.0) @ x.reshape(-1).astype(np.float64)


# A projection of the difference d on random signs has the variance |d|^2. Three of them fall together below
# 0.1956 of |d|, in root mean square, once in a hundred times (chi-squared with three degrees of freedom).
_QUANTILE = 0.1956


def difference(brief: Brief, name: str, x: np.ndarray) -> float:
    """An upper estimate of |x - recorded| / |recorded|; too low once in a hundred times at most.

    The greatest of three: the difference of the norms; the root mean square of the projections' differences
    over the quantile above; and that of the entries, scaled to the tensor.
    """
    i = int(np.searchsorted(brief.names, name))
    assert brief.names[i] == name, f"no recording of {name}"
    recorded = float(brief.norms[i])
    by_norm = abs(norm(x) - recorded)
    by_projection = math.sqrt(np.mean((project(name, x) - brief.projections[i]) ** 2)) / _QUANTILE
    missed = x.reshape(-1)[brief.positions[i]].astype(np.float64) - brief.entries[i]
    by_entry = math.sqrt(np.mean(missed**2) * float(brief.nonzero[i]))
    return max(by_norm, by_projection, by_entry) / recorded


def assert_same_gradients(brief: Brief, gradients: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Every gradient within `tolerance` of the recorded one, relative to its norm.

    A key's bias, whose exact gradient is zero, is held to 1e-6 of its layer's largest.
    """
    assert sorted(gradients) == list(brief.names), set(gradients) ^ set(brief.names)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), f"{name}: not finite"
        if name.endswith(KEY_BIAS):
            layer = name.removesuffix(KEY_BIAS)
            largest = max(norm(g) for other, g in gradients.items() if other.startswith(layer))
            assert norm(gradient) <= 1e-6 * largest, f"{name}: {norm(gradient):.3g} beside {largest:.3g}"
        else:
            found = difference(brief, name, gradient)
            assert found <= tolerance, f"{name}: differs by {found:.3g} of its norm, allowed {tolerance:.3g}"


def assert_same_moves(brief: Brief, moved: dict[str, np.ndarray], tolerance: float = 2e-3) -> None:
    """Every parameter's way within `tolerance` of the recorded one; a key's bias only follows rounding errors.

    Rounding reaches 7e-4 where a parameter comes back to nearly where it was; training without the decay, or
    with the decay of biases and LayerNorms too, makes over 4e-3.
    """
    for name in brief.names:
        if not name.endswith(KEY_BIAS):
            found = difference(brief, name, moved[name])
            assert found <= tolerance, f"{name}: moved otherwise by {found:.3g}, allowed {tolerance:.3g}"


def save(path: Path, brief: Brief | None = None, **arrays: Any) -> None:
    """The recording as one npz file."""
    np.savez_compressed(path, **(vars(brief) if brief else {}), **arrays)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def load_brief(recorded: dict[str, np.ndarray]) -> Brief:
    return Brief(**{name: recorded[name] for name in Brief.__dataclass_fields__})
