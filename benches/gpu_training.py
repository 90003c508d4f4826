"""Training on a card with nothing but full windows, and the chapter's table: speed beside PyTorch, memory as measured.

    pip install ".[gpu,peers]"
    python benches/gpu_training.py speed --shape base --batch 64
    python benches/gpu_training.py memory --shape large

speed: windows of 384 real tokens, the span head, dropout on: windows a second of minibert, of PyTorch in bf16 with SDPA
and fused AdamW, and of the same compiled, in turns; losses are read at the end of a turn, whoever runs ahead, and the
card has done all when it ends. Beside that: how long a step takes, and how long Python takes to ask for it. memory:
for each length of the table, or those that --lengths names, the planned largest
batch in 12.0e9 bytes as one micro-batch, by whichever policy holds most, what is counted for the process meanwhile,
what of that is not arrays, and whether one window more fits. benches/test_gpu_training.py holds both to their aims.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from minibert.config import BertConfig
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.devices import gpu
from minibert.models import config as config_of
from minibert.planning import LENGTHS, Plan
from minibert.squad.reader import Reader
from minibert.squad.settings import SquadConfig
from minibert.tokenizer import Features
from minibert.training import Trainer

LENGTH, ROUNDS, STEPS, RATE = 384, 7, 5, 3e-5
MEMORY = 12 * 10**9


def windows(count: int, length: int, config: BertConfig) -> Split:
    """Windows full of random tokens, with random answers."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, config.vocab_size, count * length).astype(np.int32)
    labels = np.sort(rng.integers(0, length, (count, 2)), 1).astype(np.int32)
    return Split("train", Features(ids, np.zeros(count * length, np.int8), np.arange(count + 1) * length), labels)


Wait = Callable[[], float]  # for an update, and what its loss was


def reader_of(config: BertConfig) -> Reader:
    """A reader of random weights."""
    reader = Reader(config, devices.open("gpu", precision="bf16"))
    rng = np.random.default_rng(1)
    reader.fill({name: 0.02 * rng.standard_normal(a.shape, np.float32) for name, a in reader.arrays().items()})
    return reader


def trainer(reader: Reader, batch: int, length: int, recompute: str = "none") -> Trainer:
    settings = SquadConfig(
        task="squad", device="gpu", precision="bf16", batch_size=batch, epochs=10_000, recompute=recompute
    )
    return Trainer(reader, windows(batch, length, reader.config), settings)


def ours(config: BertConfig, batch: int) -> Callable[[], Wait]:
    """A function that begins an update."""
    training, numbers = trainer(reader_of(config), batch, LENGTH), iter(range(10_000))

    def begin() -> Wait:
        wait = training.begin(next(numbers))
        return lambda: wait().loss

    return begin


def theirs(config: BertConfig, batch: int, compiled: bool) -> Callable[[], Wait]:
    """The same by PyTorch."""
    import torch
    import transformers

    shape = transformers.BertConfig(
        hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads, intermediate_size=config.intermediate_size,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.BertForQuestionAnswering(shape).cuda().train()
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-6, weight_decay=0.01, fused=True)
    data = windows(batch, LENGTH, config)
    starts, ends = torch.from_numpy(data.labels.astype(np.int64)).cuda().T.contiguous()
    ids = torch.from_numpy(data.features.ids.astype(np.int64)).reshape(batch, LENGTH).cuda()

    def begin() -> Wait:
        with torch.autocast("cuda", torch.bfloat16):
            loss = call(input_ids=ids, start_positions=starts, end_positions=ends).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().item

    return begin


def speed(shape: str, batch: int) -> None:
    config = config_of(shape)
    sides = {"minibert": ours(config, batch), "torch": theirs(config, batch, False)}
    sides["torch, compiled"] = theirs(config, batch, True)
    finish = gpu.library().cuda.runtime.deviceSynchronize  # whose updates are under way would run in others' time
    asking: dict[str, list[float]] = {name: [] for name in sides}  # seconds a step
    lasting: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, begin in sides.items():
            began = time.perf_counter()
            waits = [begin() for _ in range(STEPS)]
            asked_for = time.perf_counter()
            losses = [wait() for wait in waits]
            finish()
            assert np.isfinite(losses).all()
            if number:  # the first round compiles and records
                asking[name].append((asked_for - began) / STEPS)
                lasting[name].append((time.perf_counter() - began) / STEPS)
    titles = f"{shape}, {batch} windows of {LENGTH}", "windows/s", "minibert beside it", "ms a step", "ms to ask for it"
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name in sides:
        lasts, asks = median(lasting[name]), median(asking[name])
        ratio = lasts / median(lasting["minibert"])
        print(f"| {name} | {batch / lasts:,.0f} | {ratio:.2f} | {1e3 * lasts:.1f} | {1e3 * asks:.1f} |")


def memory(shape: str, lengths: Sequence[int]) -> None:
    """One process a length: what a process has had, the driver keeps."""
    head = "tokens", "policy", "windows", "bytes", "counted for", "not arrays", "one more"
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for length in lengths:
        subprocess.run([sys.executable, __file__, "one", "--shape", shape, "--length", str(length)], check=True)


def asked(query: str) -> list[int]:
    """What nvidia-smi answers in MiB, in bytes; [] where there is none, or where it does not know."""
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    try:
        words = subprocess.run(command, capture_output=True, text=True).stdout.split()
    except OSError:
        return []
    return [int(word) << 20 for word in words if word.isdigit()]


def counted(before: list[int]) -> tuple[int, str]:
    """What the card counts for this process, and how: within a container's own numbers of processes nvidia-smi may not
    see them; then it is what the whole card has more than `before`, or, without nvidia-smi, what is not free.
    """
    processes, card = asked("compute-apps=used_memory"), asked("gpu=memory.used")
    if len(processes) == 1:
        return processes[0], "the process"
    if before and card:
        return card[0] - before[0], "the card, less before"
    free, total = gpu.library().cuda.runtime.memGetInfo()
    return total - free, "the card"


def one(shape: str, length: int) -> None:
    before = asked("gpu=memory.used")
    reader = reader_of(config_of(shape))
    device = reader.device
    settings = SquadConfig(task="squad", device="gpu", precision="bf16", batch_size=1)
    plan = Plan(reader.config, settings, device, MEMORY, spans=True)
    sizes = {c.recompute: plan.largest(length, c.recompute) for c in plan.columns if not c.layerwise}
    policy = max(sizes, key=sizes.__getitem__)
    device.limit(MEMORY)
    planned = trainer(reader, sizes[policy], length, policy)
    assert np.isfinite([planned.step(number).loss for number in range(2)]).all() and planned.micro_tokens is None
    used, how = counted(before)
    beside = used - device.pool.total_bytes() - device._own
    del planned
    gc.collect()
    larger = trainer(reader, sizes[policy] + 1, length, policy)
    larger.step(0)  # in parts, where memory runs out
    more = "fits" if larger.micro_tokens is None else "does not fit"
    print(f"| {length} | {policy} | {sizes[policy]} | {used:,} | {how} | {beside:,} | {more} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory", "one"])
    parser.add_argument("--shape", choices=["base", "large"], default="base")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=LENGTH, help="of `one`")
    parser.add_argument("--lengths", type=int, nargs="+", choices=LENGTHS, default=LENGTHS, help="of `memory`")
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.shape, args.batch)
    else:
        memory(args.shape, args.lengths) if args.what == "memory" else one(args.shape, args.length)


if __name__ == "__main__":
    main()
