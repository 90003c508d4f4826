"""Pre-trains the small model that ships with the embedded sample: minibert/models/sample.

The text is minibert.tasks.sample.passages: an event told twice, with train's templates and names, from draws of their
own. It has no labels and nothing of dev's templates and names. There are two self-supervised tasks:

1. Words are masked and filled in again. A masked name has to be copied from its role in the other sentence.
2. In every second passage one sentence is hidden and the other filled in alone: what the network then draws from its
   distribution suits the sentence but seldom the hidden one. Some words are replaced by these guesses, or two like
   words of a sentence trade places, and with both sentences in view the network tells for every token whether it is
   the original one (as in ELECTRA, Clark et al. 2020), and at [CLS] whether all are. This goes through the pooler.

The steps begin with the first task alone, and with each passage's first sentence twice. Passages whose sentences are
more and more unlike take over by and by: told in different words from the start, the network does not find out in
several thousand steps that it could copy. Half of the steps mask single pieces of words, so that the rest of a name
shows where to look, and names, which alone can be copied, are masked more often than other words.

The engine is minibert's own, in fp32. From the checkout, half an hour on two cores:

    python tools/pretrain_sample.py [--output DIR] [--steps N] [--threads N]

The packaged weights are those of such a run with one thread: in its last steps it filled in 88 % of the masked words
with the other sentence in view and 37 % without ("paired", "alone"), and told 97 % of the passages ("whole").
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from minibert import files, ops
from minibert.autograd import Tape, Tensor
from minibert.batch import Batch, pack
from minibert.bert import Bert
from minibert.config import BertConfig
from minibert.kernels import devices
from minibert.kernels.devices import Device
from minibert.optim import Adam, learning_rate
from minibert.parameters import Group
from minibert.random import initial_weights
from minibert.tasks import sample
from minibert.tasks.sample_events import ENDS, STARTS
from minibert.tokenizer import SPECIAL, Features, Tokenizer

CONFIG = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,  # so narrow a model compares names by few numbers: without some of them it cannot
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
PASSAGES, STEPS, BATCH = 60000, 10000, 32
RATE, WARMUP, SEED = 1e-3, 0.07, 1
DEVIATION = 0.06  # of the initial weights; with 0.02 so narrow a network hardly learns to attend
MASKED, MASKED_NAMES = 0.08, 0.3  # of words of one piece and of several, when both sentences are masked
PIECES = 0.5  # of the steps mask pieces of words
TWICE, MIXED, ALL = 800, 1500, 2600  # steps: until then the same sentence twice; then fewer, none; all passages
ONLY_FILLING = 3500  # steps: before it can fill in, the network's guesses teach nothing
GUESSED = 0.3  # of the masked words keep the guess
TELLING_WEIGHT, WHOLE_WEIGHT = 4.0, 10.0


def vocabulary() -> list[str]:
    """Whole words of train's text, the syllables of names, and single characters for everything else."""
    words = {word for pair in sample.passages(5000) for text in pair for word in text.lower().split()}
    ends = [end for kind in ENDS.values() for end in kind]
    names = {f"{start}{end}".lower() for start in STARTS for end in ends}
    characters = {chr(code) for code in range(33, 127)} - {chr(code) for code in range(65, 91)}
    letters = {c for c in characters if c.isalnum()}
    pieces = {f"##{piece}" for piece in letters | set(ends)}
    return [*SPECIAL, *sorted(words - names | {s.lower() for s in STARTS} | characters | pieces)]


class Pretrainer:
    """The encoder with its head and one for filling in; `step` is one update."""

    def __init__(self, device: Device, config: BertConfig, steps: int, continuing: np.ndarray, counts: np.ndarray):
        c, v = config.hidden_size, config.vocab_size
        self.device, self.steps, self.continuing, self.counts = device, steps, continuing, counts
        self.bert = Bert(config, 2, device)
        self.filling = Group(device, "filling", {
            "transform.weight": (c, c), "transform.bias": (c,),
            "LayerNorm.weight": (c,), "LayerNorm.bias": (c,), "words.bias": (v,),
        })  # fmt: skip
        shapes = {name: array.shape for name, array in self.bert.arrays().items()}
        self.bert.fill(initial_weights(shapes, DEVIATION, SEED))
        for name, value in initial_weights({p.name: p.shape for p in self.filling}, DEVIATION, SEED).items():
            self.filling[name].data[...] = value
        self.optimizer = Adam([*self.bert.groups, self.filling])
        self.draws = np.random.Generator(np.random.Philox(SEED))

    def words(self, x: Tensor, batch: Batch) -> Tensor:
        """What each row's token could be: (S, C) to (S, V), through the word embeddings."""
        p, words = self.filling, self.bert.embeddings["embeddings.word_embeddings.weight"]
        where = batch.positions, batch.examples
        y = ops.bias_gelu(ops.linear(x, p["transform.weight"], None), p["transform.bias"], "erf")
        y = ops.dropout_add_layer_norm(y, x, p["LayerNorm.weight"], p["LayerNorm.bias"], *where, 1e-12, 0.0, None)
        return ops.linear(y, words, p["words.bias"])

    def step(self, step: int, text: Features) -> dict[str, float]:
        telling = step >= ONLY_FILLING
        masked = self._choose(text, one_sentence=telling)
        guesses, measured = self._fill(text, masked, hide=telling)
        if telling:
            measured |= self._tell(text, self._corrupt(text, guesses))
        rate = learning_rate("google", step, RATE, self.steps, int(WARMUP * self.steps))
        self.optimizer.measure()
        self.optimizer.clip(np.zeros(0, np.float32))
        self.optimizer.update(step, rate)
        if np.isnan(self.optimizer.scale[0]):
            raise SystemExit(f"step {step}: a gradient is not finite")
        return measured

    def _choose(self, text: Features, one_sentence: bool) -> np.ndarray:
        """Where to mask, in both sentences or in the first or second of each passage: (T,) bool."""
        word = np.cumsum(~self.continuing[text.ids]) - 1
        rate = np.where(np.bincount(word) > 1, MASKED_NAMES, MASKED)[word] * (2 if one_sentence else 1)
        if self.draws.random() < PIECES:
            word = np.arange(len(word))
        chosen = self.draws.random(len(word))[word] < rate
        if one_sentence:
            chosen &= text.segments == np.repeat(self.draws.integers(2, size=len(text)), np.diff(text.offsets))
        return chosen & (text.ids >= len(SPECIAL))

    def _fill(self, text: Features, masked: np.ndarray, hide: bool) -> tuple[np.ndarray, dict[str, float]]:
        """Adds the gradients of filling in; returns the ids with the masked ones drawn by the network.

        With `hide`, passages with even numbers are told from the masked sentence alone.
        """
        first = text.offsets[:-1]
        passage = np.repeat(np.arange(len(text)), np.diff(text.offsets))
        sentence = np.maximum.reduceat(np.where(masked, text.segments, 0), first)
        alone = hide & (passage % 2 == 0)
        seen = ~alone | (text.segments == sentence[passage])
        seen[first] = True
        ids = np.where(masked, SPECIAL.index("[MASK]"), text.ids).astype(np.int32)
        lengths = np.add.reduceat(seen, first, dtype=np.int64)
        part = Features(ids[seen], text.segments[seen], np.concatenate([[0], np.cumsum(lengths)]))
        rows, wanted = np.flatnonzero(masked[seen]).astype(np.int32), text.ids[masked]
        batch = self._pack(part)
        with Tape() as tape:
            x = ops.take_rows(self.bert.encode(batch, None), self.device.array(rows))
            logits = self.words(x, batch)
            loss = ops.softmax_cross_entropy(logits, self.device.array(wanted))
        tape.backward(loss, [self._weights(np.ones(len(rows)))])
        scores = self.device.numpy(logits.data)[:, len(SPECIAL) :]
        ids[masked] = len(SPECIAL) + (scores + self.draws.gumbel(size=scores.shape)).argmax(1)
        right = scores.argmax(1) + len(SPECIAL) == wanted
        measured = {"paired": float(right[~alone[masked]].mean())}
        return ids, measured | ({"alone": float(right[alone[masked]].mean())} if hide else {})

    def _corrupt(self, text: Features, guesses: np.ndarray) -> np.ndarray:
        """The passages' ids: of four, one with some guesses, one with two words traded, two as they were."""
        passage = np.repeat(np.arange(len(text)), np.diff(text.offsets))
        word = np.cumsum(~self.continuing[text.ids]) - 1
        guessed = (self.draws.random(word[-1] + 1) < GUESSED)[word] & (passage % 4 == 0)
        ids = np.where(guessed, guesses, text.ids)
        words = np.flatnonzero(~self.continuing[ids])  # the row where each word begins
        pieces = np.diff(np.append(words, len(ids)))
        sentence = np.cumsum(ids[words] < len(SPECIAL))  # a number for each: [CLS] and [SEP] begin new ones
        weights = np.where(ids[words] < len(SPECIAL), 0.0, 1 / self.counts[ids[words]])
        table = self.device.numpy(self.bert.embeddings["embeddings.word_embeddings.weight"].data)
        meaning = table[ids[words + pieces - 1]]
        meaning = meaning / np.linalg.norm(meaning, axis=1, keepdims=True)
        bounds = np.searchsorted(words, text.offsets)
        for begin, end in zip(bounds[2:-1:4], bounds[3::4], strict=True):
            share = weights[begin:end].cumsum()
            one = begin + np.searchsorted(share, self.draws.random() * share[-1])
            here = slice(begin, end)
            fits = (sentence[here] == sentence[one]) & (pieces[here] == pieces[one]) & (weights[here] > 0)
            fits[one - begin] = False
            if fits.any():
                other = begin + np.where(fits, meaning[here] @ meaning[one], -2).argmax()
                a, b = (words[w] + np.arange(pieces[one]) for w in (one, other))
                ids[a], ids[b] = ids[b], ids[a]
        return ids

    def _tell(self, text: Features, ids: np.ndarray) -> dict[str, float]:
        """Adds the gradients of telling replaced tokens, and at [CLS] whether there is one."""
        head, first = self.bert.head, text.offsets[:-1]
        replaced = ids != text.ids
        replaced[first] = np.logical_or.reduceat(replaced, first)
        whole = np.isin(np.arange(len(ids)), first)
        with Tape() as tape:
            x = self.bert.encode(self._pack(Features(ids, text.segments, text.offsets)), None)
            x = ops.bias_tanh(ops.linear(x, head["pooler.dense.weight"], None), head["pooler.dense.bias"])
            logits = ops.linear(x, head["classifier.weight"], head["classifier.bias"])
            loss = ops.softmax_cross_entropy(logits, self.device.array(replaced.astype(np.int32)))
        tape.backward(loss, [self._weights(np.where(whole, WHOLE_WEIGHT, 1.0)) * np.float32(TELLING_WEIGHT)])
        said = self.device.numpy(logits.data).argmax(1) == 1
        return {
            "tell": float(loss.data[~whole].mean()),
            "found": float(said[replaced & ~whole].mean()),
            "false": float(said[~replaced & ~whole].mean()),
            "whole": float((said == replaced)[whole].mean()),
        }

    def _pack(self, text: Features) -> Batch:
        return pack(self.device, text, np.arange(len(text)), None)

    def _weights(self, weights: np.ndarray) -> np.ndarray:
        return self.device.array((weights / weights.sum()).astype(self.device.float_type))


class Curriculum:
    """The passages of each step: from the same sentence twice, over sentences that are much alike, to all."""

    def __init__(self, passages: list[tuple[str, str]], tokenizer: Tokenizer):
        alike = sorted(passages, key=lambda pair: -sample.overlap(*pair))
        self.passages = tokenizer.encode(alike, 128)
        self.twice = tokenizer.encode([(first, first) for first, _ in alike], 128)

    def batch(self, step: int, draws: np.random.Generator) -> Features:
        share = min(1.0, max(0.03, (step - TWICE) / (ALL - TWICE)))
        numbers = draws.integers(int(share * len(self.passages)), size=BATCH)
        twice = round(BATCH * min(1.0, max(0.0, (MIXED - step) / (MIXED - TWICE))))
        return join(slice_of(self.twice, numbers[:twice]), slice_of(self.passages, numbers[twice:]))


def slice_of(text: Features, numbers: np.ndarray) -> Features:
    """The passages of these numbers."""
    lengths = np.diff(text.offsets)[numbers]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(text.offsets[numbers] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Features(text.ids[rows], text.segments[rows], offsets)


def join(a: Features, b: Features) -> Features:
    return Features(
        np.concatenate([a.ids, b.ids]),
        np.concatenate([a.segments, b.segments]),
        np.concatenate([a.offsets, a.offsets[-1] + b.offsets[1:]]),
    )


def save(bert: Bert, config: dict[str, object], vocab: list[str], directory: Path) -> None:
    """A checkpoint as Hugging Face has it, in half precision and without a classifier."""
    kept = {name: array for name, array in bert.arrays().items() if not name.startswith("classifier")}
    tensors = {name: np.ascontiguousarray(array, np.float16) for name, array in kept.items()}
    tokenizer = {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 128}
    files.write_whole(directory / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))
    files.write_whole(directory / "vocab.txt", ("\n".join(vocab) + "\n").encode())
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        files.write_whole(directory / name, (json.dumps(content, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-trains the sample's model.")
    parser.add_argument("--output", type=Path, default=sample.model_path())
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    began = time.perf_counter()
    vocab = vocabulary()
    curriculum = Curriculum(sample.passages(PASSAGES), Tokenizer.from_vocab(vocab))
    config = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(vocab), **CONFIG}
    device = devices.open("cpu", threads=options.threads)
    continuing = np.array([token.startswith("##") for token in vocab])
    counts = np.bincount(curriculum.passages.ids, minlength=len(vocab)) + 1
    pretrainer = Pretrainer(device, BertConfig.from_dict(config, "pretrain_sample"), options.steps, continuing, counts)
    recent: list[dict[str, float]] = []
    with device.session():
        for step in range(options.steps):
            recent.append(pretrainer.step(step, curriculum.batch(step, pretrainer.draws)))
            if (step + 1) % 250 == 0:
                means = {k: np.mean([r[k] for r in recent if k in r]) for k in recent[-1]}
                shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                print(f"step {step + 1}, {time.perf_counter() - began:.0f} s: {shown}", flush=True)
                recent.clear()
                save(pretrainer.bert, config, vocab, options.output)
    save(pretrainer.bert, config, vocab, options.output)


if __name__ == "__main__":
    main()
