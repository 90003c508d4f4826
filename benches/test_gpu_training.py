"""A card's speed and memory in whole jobs, by the scripts beside this file: `pytest benches -m gpu`.

Each prints its table and holds it to what is aimed at on an H200. Some need PyTorch and transformers, others MRPC,
which is in data/glue of the folder that MINIBERT_SHARED names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from memory_plan import FULL

from minibert.kernels.devices import gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu.usable(), reason="there is no GPU, or no CuPy: minibert doctor"),
]
HERE = Path(__file__).parent
# Looked for and not imported, which is the scripts' business: here the checkout's kernels/ would be in its way.
COMPARED = pytest.mark.skipif(
    not (find_spec("transformers") and find_spec("torch")), reason="PyTorch and transformers are not installed"
)
SHAPES = pytest.mark.parametrize("shape", ["base", "large"])
LEAST = {"base": 1400, "large": 500}  # windows of 384 tokens a second: 1.5 times what was published for PyTorch in fp16


def table(*arguments: object) -> list[list[str]]:
    """The cells of the table that a script prints, without its head; shown as they come, should time run out."""
    call, lines = [sys.executable, *map(str, arguments)], []
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as script:
        for line in script.stdout or ():
            print(line, end="", flush=True)
            lines += [line.strip()] * line.startswith("|")
    assert script.returncode == 0
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def mrpc() -> Path:
    if not (folder := os.environ.get("MINIBERT_SHARED")):
        pytest.skip("MINIBERT_SHARED is not set")
    return Path(folder) / "data" / "glue"


@COMPARED
def test_a_step_of_mrpc_takes_half_of_pytorch_s_time(mrpc):
    sides = "minibert-bf16", "torch-bf16", "torch-compile-bf16"
    options = "--device", "gpu", "--data-dir", mrpc, "--models", "random:base", "--sides", *sides
    ratios = {row[1]: float(row[4]) for row in table(HERE / "compare_step.py", *options)}
    assert ratios.keys() == set(sides), "a side has failed"
    assert min(ratios[side] for side in sides[1:]) >= 2


@COMPARED
@SHAPES
def test_full_windows(shape):
    rates = {
        side: float(rate.replace(",", ""))
        for side, rate, *_ in table(HERE / "gpu_training.py", "speed", "--shape", shape)
    }
    ours = rates.pop("minibert")
    assert ours >= LEAST[shape] and ours >= 1.2 * max(rates.values())


@SHAPES
def test_the_chapter_s_table_in_12_gigabytes(shape):
    found = {}
    for length, _, count, used, *_, more in table(HERE / "gpu_training.py", "memory", "--shape", shape):
        assert int(used.replace(",", "")) <= 12e9 and more == "does not fit", length
        found[int(length)] = int(count)
    assert all(found[length] >= least for length, least in FULL[shape].items()), found


def test_three_epochs_of_mrpc_take_ten_seconds(mrpc, tmp_path):
    """From the first update, the second time, when kernels are compiled."""
    for name in ("first", "second"):
        options = f"--checkpoint random:base --data-dir {mrpc} --device gpu --output-dir {tmp_path / name}".split()
        command = [sys.executable, "-c", "from minibert.cli import main; main()", "finetune", "mrpc", *options]
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        steps = [time.perf_counter() for line in run.stderr or () if line.startswith("step ")]
        assert run.wait() == 0
    print(f"{steps[-1] - steps[0]:.1f} s")
    assert steps[-1] - steps[0] < 10
