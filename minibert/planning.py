"""What fits into memory, before anything is allocated: settings for a run, and the chapter's table of batch sizes.

Nothing is tried out: the step is counted on a dry device (minibert/memory.py), the policy of recomputation is found by
a dynamic programme (minibert/chain.py), and of all that fits the fastest is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from minibert import chain, hub
from minibert.config import BertConfig
from minibert.errors import ConfigError, counted
from minibert.evaluation import Split
from minibert.kernels.devices import Device, gpu
from minibert.memory import Planner, parse_size
from minibert.model import open_device
from minibert.policies import check, spelled
from minibert.settings import TrainConfig
from minibert.training import Stage

Config = TypeVar("Config", bound=TrainConfig)
LENGTHS = (64, 128, 256, 320, 384, 512)
# The largest batches on a 12 GB card with TensorFlow 1.11, by layers and hidden size: google-research/bert's README.
TENSORFLOW = {(12, 768): (64, 32, 16, 14, 12, 6), (24, 1024): (12, 6, 2, 1, 0, 0)}
EXTRA = 100  # what each further micro-batch costs, in tokens: mostly reading and writing the weights' gradients
TWICE = 2.0  # the time of an update layer by layer: everything is computed twice
SPARE = 0.95  # of the free memory is planned with, where no figure is given


@dataclass(frozen=True)
class Choice:
    """Settings that fit: at most `micro_tokens` tokens at a time (None: the batch as it is), a policy as text, whether
    layers are updated one by one; the time as a multiple of keeping everything, and the bytes of the process at its
    peak.
    """

    micro_tokens: int | None
    recompute: str
    layerwise: bool
    time: float
    peak: int


class Plan:
    """Choices for one model and one kind of training within `memory` bytes."""

    def __init__(self, config: BertConfig, settings: TrainConfig, device: Device, memory: int, spans: bool = False):
        self.planner, self.settings, self.memory = Planner(config, settings, device, spans), settings, memory
        self.layers = config.num_hidden_layers
        self.columns = columns(self.layers, self.planner.device.host_apart)

    def choose(
        self, lengths: Sequence[int], recompute: str | None = None, whole: bool = False,
        kinds: Collection[int] | None = None,
    ) -> Choice:  # fmt: skip
        """The fastest way to train on batches of which the heaviest has these lengths.

        `recompute`: the policy, if it is settled; `whole`: the batch is one micro-batch; `kinds`: the lengths that
        batches are made of, where others have more than these. ConfigError if nothing fits.
        """
        if self.settings.layerwise_update:
            best = self._search(lengths, recompute, layerwise=True)
        else:
            best = self._in_parts(lengths, recompute, whole, kinds or {*lengths})
            if best is None and not recompute and not self.settings.in_parts:
                best = self._search(lengths, recompute, layerwise=True)
        if best is None:
            raise ConfigError(self._too_little(lengths if whole else [max(kinds or lengths)], recompute))
        return best

    def _in_parts(
        self, lengths: Sequence[int], recompute: str | None, whole: bool, kinds: Collection[int]
    ) -> Choice | None:
        """The fastest of policies for the batch as it is, for halves of it, and so on down to single examples."""
        total, longest, best = sum(lengths), max(kinds), None
        tokens = total
        while True:
            part = lengths if tokens == total else filled(kinds, tokens, self.settings.batch_size)
            if found := self._search(part, recompute):
                time = found.time * (1 + EXTRA * (math.ceil(total / tokens) - 1) / max(total, 1))
                found = dataclasses.replace(found, micro_tokens=tokens if tokens < total else None, time=time)
                best = found if best is None or time < best.time else best
                if recompute or set(found.recompute) == {"k"}:
                    return best  # smaller ones only cost more
            if whole or tokens <= longest:
                return best
            tokens = max(math.ceil(tokens / 2), longest)

    def go_on(self, lengths: Sequence[int], recompute: str | None = None) -> Choice:
        """How a run with these settings goes on: by the policy given, else by its own, or by the fastest that fits."""
        own = self.settings.recompute
        for policy in (recompute,) if recompute else (None,) if own == "none" else (own, None):
            if found := self._search(lengths, policy, self.settings.layerwise_update):
                return found
        raise ConfigError(self._too_little(lengths, recompute, begun=True))

    def largest(self, length: int, recompute: str, layerwise: bool = False, guess: int = 0) -> int:
        """How many sequences of `length` tokens fit as one micro-batch; 0: none. A good guess saves time."""

        def peak(count: int) -> int:
            return self.planner.use([length] * count, recompute, layerwise).process

        few, low, many, high = 0, 0, 0, 0  # the most known to fit and the fewest known not to, 0: none yet
        slope, step = 1.0, 1 if guess else max(1, 4096 // length)  # the one after a good guess does not fit
        guess = guess or 1
        while not many or many - few > 1:
            if (at := peak(guess)) <= self.memory:
                slope = (at - low) / (guess - few) if few else slope
                few, low = guess, at
            else:
                many, high = guess, at
            if many and few:
                guess = few + int((many - few) * (self.memory - low) / (high - low))
                guess = min(max(guess, few + 1), many - 1)
            elif many:
                guess = many - max(1, many // 16)
            elif slope > 1:
                guess = few + max(1, int((self.memory - low) / slope))
            else:
                guess = few + step
            if guess == 0:
                return 0
        return few

    def _search(self, lengths: Sequence[int], recompute: str | None, layerwise: bool = False) -> Choice | None:
        """The fastest policy for one micro-batch of these lengths, or `recompute`; None if it does not fit."""

        def choice(policy: str) -> tuple[int, Choice | None]:
            use = self.planner.use(lengths, policy, layerwise)
            time = chain.slowdown(policy, self.layers) * (TWICE if layerwise else 1)
            fits = use.process <= self.memory
            return use.process, Choice(None, policy, layerwise, time, use.process) if fits else None

        policy = spelled(recompute or "none", self.layers)
        peak, fits = choice(policy)
        if fits or recompute:
            return fits
        layer, last = self.planner.layer(lengths), self.planner.layer(lengths, last=True)
        # What all policies have in common is found from one of them; the rest is the programme's, which is right to
        # about an input.
        room, step = self.memory - (peak - chain.taken(self.layers, layer, last)), layer.input // 4
        while found := chain.cheapest(self.layers, room, layer, last, self.planner.device.host_apart):
            peak, fits = choice(found.policy)
            if fits:
                return fits
            room, step = room - max(peak - self.memory, step), 2 * step
        return None

    def _too_little(self, lengths: Sequence[int], recompute: str | None, begun: bool = False) -> str:
        leanest = recompute or ("host" if self.planner.device.host_apart else "segments:4")
        use = self.planner.use(lengths, spelled(leanest, self.layers), self.settings.layerwise_update)
        advice = (
            "give this run more --memory: should it run out, micro-batches become smaller; or train anew"
            if begun
            else "a smaller --max-seq-length, another --recompute, --optimizer adafactor or adam8bit, and "
            "--layerwise-update take less"
        )
        return (
            f"memory of {self.memory / 1e9:.3g} GB does not suffice: {counted(len(lengths), 'example')} of at most "
            f"{max(lengths)} tokens {'takes' if len(lengths) == 1 else 'take'} {use.process / 1e9:.2f} GB; {advice}"
        )


def budget(memory: str | None, device: Device) -> int | None:
    """Bytes that the process may take: those of a size such as 12GB, or what is free; None where nobody knows."""
    free = device.free_memory()
    if memory is not None:
        return parse_size(str(memory))
    return None if free is None else int(SPARE * free) + min(device.process, device.taken())


def fitted(
    settings: Config,
    config: BertConfig,
    data: Sequence[tuple[Split, float]],
    device: Device,
    limit: int | None,
    recompute: str | None,
    spans: bool = False,
    begun: bool = False,
) -> tuple[Config, str]:
    """The settings with micro-batches and recomputation such that a run fits into `limit` bytes, and a line about it.

    data: what is trained on, and its epochs. limit: of the process, from `budget`. recompute: None if it is to be
    chosen; micro-batches are chosen where the settings leave batches whole. begun: the settings are those of a run that
    goes on, with its micro-batches, and its policy where that fits. ConfigError if nothing fits, or a policy has more
    layers than there are.
    """
    if recompute:
        check(recompute, config.num_hidden_layers)
    if limit is None:
        return settings, "nobody knows how much memory is free: nothing is planned; --memory says it"
    device.limit(limit)
    kinds = {*np.unique(np.concatenate([np.diff(part.features.offsets) for part, _ in data])).tolist()}
    if settings.micro_tokens:
        lengths = filled(kinds, settings.micro_tokens, settings.micro_batch)
    else:
        lengths = heaviest([Stage(part, epochs, settings) for part, epochs in data], settings.micro_batch)
    plan = Plan(config, settings, device, limit, spans)
    choice = plan.go_on(lengths, recompute) if begun else plan.choose(lengths, recompute, settings.in_parts, kinds)
    chosen = dataclasses.replace(
        settings,
        micro_tokens=settings.micro_tokens if begun or settings.in_parts else choice.micro_tokens,
        recompute=choice.recompute if set(choice.recompute) - {"k"} else "none",
        layerwise_update=choice.layerwise,
    )
    return chosen, f"memory: at most {gigabytes(choice.peak)} of {gigabytes(limit)}{_told(choice, recompute)}"


def _told(choice: Choice, given: str | None = None) -> str:
    """What a choice is beside a peak; `given`: the policy as it was asked for, perhaps by its name."""
    parts = []
    if choice.micro_tokens:
        parts.append(f"micro-batches of at most {choice.micro_tokens:,} tokens")
    if set(choice.recompute) - {"k"}:
        parts.append(f"recompute {given or choice.recompute}")
    if choice.layerwise:
        parts.append("layers updated one by one")
    return f"; {', '.join(parts)}: about {choice.time:.2f} times the time" if parts else ""


def heaviest(stages: Sequence[Stage], most: int) -> list[int]:
    """Lengths of a batch that is no lighter than any in training, or any part of `most` examples of one: with the most
    tokens of all, the longest sequence and the most sequences.
    """
    tokens = longest = count = 0
    for stage in stages:
        lengths = np.diff(stage.data.features.offsets)
        for step in range(stage.total):
            batch = lengths[stage.numbers(step)]
            for start in range(0, len(batch), most):
                part = batch[start : start + most]
                tokens, longest, count = max(tokens, part.sum()), max(longest, part.max()), max(count, len(part))
    return _spread(int(tokens), int(longest), int(count))


def filled(kinds: Collection[int], tokens: int, most: int) -> list[int]:
    """Lengths of a micro-batch that is no lighter than any of at most `most` sequences of these lengths and, unless it
    is one alone, `tokens` tokens: it has as many tokens as sums of such lengths can be, at least; the longest; and as
    many sequences. (Not the longest that fit: they leave room that sequences of other batches fill.)
    """
    longest = max(kinds)
    tokens = max(min(tokens, most * longest), longest)
    sums = 1  # bit n: lengths can add up to n
    for length in kinds:
        step = length
        while step <= tokens:  # once, then twice, four times and so on: any number of times
            sums |= sums << step & (2 << tokens) - 1
            step *= 2
    return _spread(sums.bit_length() - 1, longest, min(most, tokens // min(kinds)))


def _spread(tokens: int, longest: int, count: int) -> list[int]:
    """Lengths of `count` sequences with that many tokens in all, at least one each, of which the first is `longest`."""
    others = count - 1
    rest = max(tokens - longest, others)
    return [longest, *(rest // others + (i < rest % others) for i in range(others))]


@dataclass(frozen=True)
class Column:
    """A way to train, for the table; `time` as in Choice."""

    name: str
    recompute: str
    layerwise: bool
    time: float


def columns(layers: int, host: bool) -> list[Column]:
    """The policies of the table, the leanest at last; `host`: whether inputs may wait in the host's memory."""
    names = ["none", "cheap", "layers", f"segments:{math.isqrt(layers - 1) + 1}", *["host"] * host]
    found = [Column(name, name, False, chain.slowdown(spelled(name, layers), layers)) for name in names]
    last = found[-1]
    return [*found, Column(f"{last.name}, layerwise", last.recompute, True, TWICE * last.time)]


def table(plan: Plan, batch_size: int, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row a length: the largest micro-batch in every column, TensorFlow's, and the settings for `batch_size`."""
    config, tokens = plan.planner.trainer.bert.config, dict.fromkeys(plan.columns, 0)
    theirs = TENSORFLOW.get((config.num_hidden_layers, config.hidden_size))
    for length in lengths:
        try:
            choice = plan.choose([length] * batch_size)
            chosen, told = dataclasses.asdict(choice), f"{gigabytes(choice.peak)}{_told(choice)}"
        except ConfigError as error:
            chosen, told = None, str(error)
        largest = {}
        for c in tokens:
            largest[c.name] = plan.largest(length, c.recompute, c.layerwise, tokens[c] // length)
            tokens[c] = largest[c.name] * length
        yield {
            "max_seq_length": length,
            "tensorflow": theirs[LENGTHS.index(length)] if theirs and length in LENGTHS else None,
            "largest": largest,
            "settings": chosen,
            "told": told,
        }


def gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"


def _described(name: str, precision: str) -> Device:
    """The device of that name; a GPU need not be there to be planned for, and is then one with tensor cores."""
    if name == "gpu" and not gpu.usable():
        return gpu.Gpu("bf16" if precision == "auto" else precision)
    return open_device(name, None, precision)


def report(
    checkpoint: str,
    memory: str | None,
    task: str = "mrpc",
    max_seq_length: int | None = None,
    batch_size: int = 32,
    precision: str = "auto",
    device: str = "auto",
    **settings: Any,
) -> dict[str, Any]:
    """What `minibert plan` tells: what it was asked for, and the table, of which a row is made when it is asked for.

    ConfigError for a length that is not there.
    """
    config = hub.config(checkpoint)
    on = _described(device, precision)
    settled = TrainConfig(task=task, device=on.backend, precision=on.precision, batch_size=batch_size, **settings)
    most = config.max_position_embeddings
    if max_seq_length is not None and not 1 <= max_seq_length <= most:
        raise ConfigError(f"--max-seq-length {max_seq_length}: give 1 to {most}")
    lengths = [max_seq_length] if max_seq_length else [length for length in LENGTHS if length <= most] or [most]
    limit = budget(memory, on)
    if limit is None:
        raise ConfigError("how much memory is free is not known (is there such a device?): give --memory, such as 12GB")
    plan = Plan(config, settled, on, limit, spans=task == "squad")
    parameters = (param for group in plan.planner.trainer.bert.groups for param in group)
    return {
        "checkpoint": checkpoint, "task": task, "device": on.backend, "precision": settled.precision,
        "optimizer": settled.optimizer,
        "memory": limit, "batch_size": batch_size, "parameters": sum(math.prod(param.shape) for param in parameters),
        "columns": {column.name: column.time for column in plan.columns},
        "rows": table(plan, batch_size, lengths),
    }  # fmt: skip
