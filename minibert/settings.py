"""The settings of a fine-tuning run: what `run.json` records and a resume must agree with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import Parameter, signature
from numbers import Integral, Real
from os import PathLike
from typing import Any

from minibert import policies
from minibert.errors import BackendError, ConfigError, did_you_mean

RECIPES = {  # schedule, bias correction
    "google": ("google", False),  # the chapter's: run_classifier.py as published
    "stable": ("hf", True),  # Mosbach et al. 2021, who train longer with it: add --epochs 20
}
SCHEDULES = ("google", "hf", "electra")
DEVICES = ("cpu", "gpu", "tpu")
OPTIMIZERS = ("adam", "adam8bit", "adafactor")
KINDS: dict[str, tuple[tuple[type, ...], str]] = {  # of settings, by their annotations, and what people call them
    "str": ((str,), "a text"),
    "int": ((Integral,), "a whole number"),
    "float": ((Real,), "a number"),
    "bool": ((bool,), "True or False"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers of a run; the defaults are those of Google's MRPC example.

    `micro_batch` examples are computed at a time, and no more than `micro_tokens` tokens where that is given; gradients
    add up over the batch. `recompute` is a policy as in minibert/policies.py. `layerwise_update`: gradients are
    computed twice, the first time for their norm, the second time to update each layer as soon as its own are there, so
    that those of all layers never exist at once. `shard_parameters`: of weights and moments each TPU device holds a
    part. What is left None or "auto" is settled when the object is made, so that a resume on another machine cannot
    settle it otherwise: the whole batch, the recipe's schedule and bias correction (adafactor has none), the machine's
    precision. Only `gelu` may stay None: the checkpoint's.
    """

    task: str
    epochs: float = 3.0
    batch_size: int = 32
    micro_batch: int = None  # type: ignore[assignment]
    micro_tokens: int | None = None
    learning_rate: float = 2e-5
    max_seq_length: int = 128
    warmup: float = 0.1
    recipe: str = "google"
    schedule: str = None  # type: ignore[assignment]
    optimizer: str = "adam"
    bias_correction: bool = None  # type: ignore[assignment]
    gelu: str | None = None
    precision: str = "auto"
    device: str = "auto"
    recompute: str = "none"
    layerwise_update: bool = False
    shard_parameters: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        self._check_kinds()
        _require("recipe", self.recipe, self.recipe in RECIPES, " or ".join(RECIPES))
        schedule, bias_correction = RECIPES[self.recipe]
        self._settle("micro_batch", None, self.batch_size)
        self._settle("schedule", None, schedule)
        adafactor = self.optimizer == "adafactor"
        self._settle("bias_correction", None, bias_correction and not adafactor)
        object.__setattr__(self, "device", settled_device(self.device))
        object.__setattr__(self, "precision", settled_precision(self.precision, self.device))
        _require("epochs", self.epochs, 0 < self.epochs < 2**31, "above 0")
        _require("batch size", self.batch_size, self.batch_size >= 1, "at least 1")
        _require(
            "micro-batch",
            self.micro_batch,
            1 <= self.micro_batch <= self.batch_size,
            f"from 1 to the batch size {self.batch_size}",
        )
        _require("micro-tokens", self.micro_tokens, self.micro_tokens is None or self.micro_tokens >= 1, "at least 1")
        if self.layerwise_update and self.in_parts:
            raise ConfigError("--layerwise-update takes its batch whole: leave it or --micro-batch out")
        _require("learning rate", self.learning_rate, 0 < self.learning_rate < 1, "above 0 and below 1")
        _require(
            "max-seq-length",
            self.max_seq_length,
            self.max_seq_length >= 3,
            "at least 3: [CLS], a word, [SEP]",
        )
        _require("warm-up", self.warmup, 0 <= self.warmup < 1, "a share of the steps, from 0 to below 1")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        _require("schedule", self.schedule, self.schedule in SCHEDULES, ", ".join(SCHEDULES))
        policies.check(self.recompute)
        _require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, ", ".join(OPTIMIZERS))
        wanted = "off for adafactor, whose averages need none: leave it out"
        _require("bias correction", self.bias_correction, not (self.bias_correction and adafactor), wanted)
        _require("gelu", self.gelu, self.gelu in (None, "erf", "tanh"), "erf or tanh")
        _require("device", self.device, self.device in DEVICES, ", ".join(DEVICES))
        if self.device == "cpu" and policies.hosted(self.recompute):
            raise ConfigError(
                f"recompute {self.recompute}: host, and square brackets, move inputs of layers out of a GPU's memory "
                "into the host's, which is the only one here; use --recompute layers or segments:4"
            )
        if self.device == "tpu":
            self._check_tpu()
        elif self.shard_parameters:
            raise ConfigError("--shard-parameters shares them out over the devices of --device tpu: leave it out")

    def _check_kinds(self) -> None:
        """ConfigError for a value of another kind than its field's, such as a text for a number."""
        for field in dataclasses.fields(self):
            value, (kind, _, optional) = getattr(self, field.name), str(field.type).partition(" | ")
            if value is None and (optional or field.default is None):
                continue
            kinds, wanted = KINDS[kind]
            if not isinstance(value, kinds) or (isinstance(value, bool) and kind != "bool"):
                raise ConfigError(f"{field.name}={value!r:.40} is of the wrong kind: it must be {wanted}")
            if isinstance(value, Real) and kind != "bool":  # Python's own, not NumPy's, which are no JSON
                number = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, field.name, number)

    def _check_tpu(self) -> None:
        """ConfigError for what the other devices have and TPUs have not."""
        wanted = "what TPUs train with: adam"
        _require("optimizer", self.optimizer, self.optimizer == "adam", wanted)
        _require("recompute", self.recompute, self.recompute in ("none", "layers"), "none or layers on TPUs")
        if self.layerwise_update:
            raise ConfigError(
                "--layerwise-update is not for TPUs: --micro-batch and --shard-parameters save memory there"
            )

    def _settle(self, name: str, undecided: object, value: object) -> None:
        if getattr(self, name) == undecided:
            object.__setattr__(self, name, value)

    @property
    def in_parts(self) -> bool:
        """Whether batches are to be computed in micro-batches."""
        return self.micro_batch < self.batch_size or self.micro_tokens is not None

    @property
    def lean(self) -> bool:
        """Whether anything is done to take less memory."""
        return self.in_parts or self.recompute != "none" or self.layerwise_update

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_names(given: Iterable[str], kind: type[TrainConfig], function: Callable[..., object]) -> None:
    """ConfigError for a name that is neither one of `kind`'s settings nor an argument of `function`, which takes them.

    It tells the nearest that is, or all of them.
    """
    settings = [field.name for field in dataclasses.fields(kind) if field.name != "task"]
    arguments = signature(function).parameters.values()
    known = settings + [p.name for p in arguments if p.kind == Parameter.KEYWORD_ONLY and p.name not in settings]
    for name in given:
        if name not in settings:
            advice = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"{function.__name__} has no setting {name!r}{advice}")


def check_counts(**counts: int | None) -> list[int | None]:
    """Numbers of threads, steps or the like as Python's own; ConfigError for one that is no whole number from 1 on.

    None is not given.
    """
    for name, value in counts.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name}={value!r:.40}: it must be a whole number, at least 1")
    return [value if value is None else int(value) for value in counts.values()]


def check_paths(**paths: object) -> None:
    """ConfigError for what is no path; None is not given."""
    for name, value in paths.items():
        if value is not None and not isinstance(value, str | PathLike):
            raise ConfigError(f"{name}={value!r:.40}: it must be a path, as a text or a pathlib.Path")


def settled_device(device: str) -> str:
    """`auto` is the GPU where there is one, and CuPy."""
    if device != "auto":
        return device
    from minibert.kernels.devices import gpu

    return "gpu" if gpu.usable() else "cpu"


def settled_precision(precision: str, device: str = "cpu") -> str:
    """fp32 or bf16, on a GPU also tf32; `auto` is bf16 where the device has a unit for it. BackendError for bf16 in
    vain on a CPU; a GPU is asked when it is opened."""
    if device == "tpu":
        from minibert.tpu import device as tpu

        return tpu.settled_precision(precision)
    if precision == "fp32":
        return precision
    if device == "gpu":
        from minibert.kernels.devices import gpu

        return gpu.precision() if precision == "auto" else precision
    if precision == "tf32":
        raise BackendError("precision tf32 is the GPU's; use --precision fp32 or auto")
    from minibert.kernels.common import unit

    if precision == "auto":
        return "bf16" if unit.mode() in ("amx", "dot") else "fp32"
    if not unit.available():
        raise BackendError(
            f"precision bf16 {unit.NEEDS}: use --precision fp32, or set MINIBERT_TILES=software, which computes "
            "the same at some four fifths of fp32's speed, with half of the activations' memory"
        )
    return precision


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} {value} is out of range: it must be {wanted}")
