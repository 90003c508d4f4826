"""minibert tpu compile: what it reads from the compiler, what it tries, and what it says; and the compiler itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from commands import assert_one_line, environment, minibert_in_process, minibert_process, parsed
from minibert.cli import tpu
from minibert.errors import BackendError, ConfigError

jax = pytest.importorskip("jax")

from minibert.tpu import compile as ahead  # noqa: E402 - it needs jax

told = sys.modules["minibert.cli.tpu"]._table  # the module: minibert.cli.tpu is the command

GIB = 2**30
TINY = "tpu", "compile", "--checkpoint", "tiny", "--max-seq-length", "32", "--batch-size", "8"


@pytest.fixture
def libtpu() -> None:
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("libtpu is not installed: pip install '.[tpu]'")


def test_names_of_slices() -> None:
    assert ahead.topology("v2-8") == "v2:2x2" and ahead.topology("v5litepod-4") == ahead.topology("V5e-4") == "v5e:2x2"
    with pytest.raises(ConfigError, match="v2-9 is not known: choose from v2-8, .*v6e-4"):
        ahead.topology("v2-9")


def test_what_the_compiler_refuses() -> None:
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (298.12G) exceeds available HBM (7.48G). HLO module: jit_update.\nSee https://openxla.org"
    )
    assert ahead.shortage(message) == (int(298.12 * GIB), int(7.48 * GIB))
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 900.5M of 512K hbm. Exceeded by 1.0G."
    assert ahead.shortage(message) == (int(900.5 * 2**20), 512 * 2**10)
    with pytest.raises(BackendError, match="libtpu cannot compile this: INTERNAL: Mosaic"):
        ahead.shortage("INTERNAL: Mosaic\nmore")


def test_operations_are_counted_as_often_as_they_run() -> None:
    def f(x):  # (4, 5) to a scalar, through seven products of 5 x 5
        body = jax.checkpoint(lambda x, w: (x @ w, None))
        return jax.lax.scan(body, x, jax.numpy.ones((7, 5, 5)))[0].sum()

    forward = 7 * 2 * 4 * 5 * 5
    x = jax.ShapeDtypeStruct((4, 5), "float32")
    assert ahead.operations(jax.jit(f).trace(x).jaxpr.jaxpr) == forward
    both = ahead.operations(jax.jit(jax.grad(f)).trace(x).jaxpr.jaxpr)
    assert both == 2 * forward  # the weights are constant: no gradient of theirs


class Compiler:
    """In libtpu's place: says of one program after the other what it is told to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *peaks: float):
        self.peaks, self.seen = list(peaks), 0
        cores = jax.devices("cpu")[:1]
        monkeypatch.setattr(ahead, "describe", lambda name: ahead.Slice(name, cores, 8 * GIB))
        monkeypatch.setattr(ahead, "needs", self.needs)

    def needs(self, lowered, target: ahead.Slice) -> ahead.Need:
        assert "stablehlo" in lowered.as_text()
        peak, self.seen = int(self.peaks[self.seen] * GIB), self.seen + 1
        return ahead.Need(peak <= target.hbm, peak, GIB, peak - GIB, 12.3)


def forward(examples: int) -> int:
    """Operations of TINY's: 2 layers of 12 c² weights, attention's two products, pooler and classifier."""
    tokens, c = examples * 32, 128
    return 2 * tokens * (2 * (12 * c * c + 2 * 32 * c)) + examples * 2 * (c * c + 2 * c)


def report(*arguments: str) -> dict:
    done = minibert_in_process(*TINY, "--topology", "v5e-1", *arguments, "--json")
    assert done.code == 0, done.err
    assert "compiling for v5e-1, --recompute" in done.err and "compiled in 12 s" in done.err
    return json.loads(done.out)


def test_what_fits_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch, 2)
    found = report()
    assert compiler.seen == 1 and found["fits"] is True and found["instead"] is None
    assert found["hbm"] == 8 * GIB and found["peak"] == 2 * GIB and found["temporaries"] == GIB
    assert found["precision"] == "bf16" and found["options"] == "--recompute none" and found["micro_batches"] == 1
    # Three times the forward pass, and scores are computed again, and more.
    assert 3 * forward(8) <= found["operations"] <= 3.3 * forward(8)


def test_what_does_not_fit_is_reported_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch, 20, 12, 5)
    found = report()
    assert compiler.seen == 3 and found["fits"] is False and found["options"] == "--recompute none"
    better = found["instead"]
    assert better["fits"] is True and better["micro_batches"] == 2 and better["examples"] == 4
    assert better["options"] == "--recompute layers --micro-tokens 128"
    assert 1.2 * found["operations"] < better["operations"] < 1.4 * found["operations"]


def test_where_nothing_fits_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch, *[9] * 9)
    found = report("--recompute", "layers", "--batch-size", "2")
    assert compiler.seen == 2  # two examples, then one; one core has nobody to share with
    assert found["fits"] is False and found["instead"] is None and found["options"] == "--recompute layers"


def test_the_table() -> None:
    way = {"fits": False, "peak": 9 * GIB, "arguments": None, "temporaries": None, "operations": 2 * 10**12,
           "seconds": 61.0, "options": "--recompute none"}  # fmt: skip
    better = way | {"fits": True, "peak": 5 * GIB, "arguments": 4 * GIB, "temporaries": GIB, "operations": 3 * 10**12,
                    "options": "--recompute layers"}  # fmt: skip
    found = way | {"topology": "v2-8", "cores": 8, "device": "TPU v2", "hbm": 8 * GIB, "checkpoint": "large",
                   "task": "squad", "max_seq_length": 384, "batch_size": 64, "precision": "bf16"}  # fmt: skip
    table = told(found | {"instead": better})
    assert "v2-8: 8 x TPU v2, 8.00 GiB" in table and "large, squad, 384 tokens, batches of 64, bf16" in table
    assert [line.split() for line in table.splitlines()[4:6]] == [
        ["?", "?", "9.00", "GiB", "2.00", "T", "61", "s", "--recompute", "none"],
        ["4.00", "GiB", "1.00", "GiB", "5.00", "GiB", "3.00", "T", "61", "s", "--recompute", "layers"],
    ]
    assert table.endswith("does not fit; with --recompute layers it does, for 1.50 times the operations")
    assert told(found | {"instead": None}).endswith("a smaller --max-seq-length or a larger slice")
    assert told(found | better | {"instead": None}).endswith("\nfits")


def test_bad_input_is_one_line() -> None:
    assert_one_line(minibert_in_process(*TINY, "--topology", "v7-1"), 1, "v7-1 is not known", "v5e-4")
    assert_one_line(minibert_in_process(*TINY), 2, "--topology")
    wrong = {"--batch-size": "0", "--max-seq-length": "513", "--micro-batch": "9", "--checkpoint": "no-such"}
    for option, value in wrong.items():
        assert_one_line(minibert_in_process(*TINY, "--topology", "v2-8", option, value), 1, value)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert_one_line(minibert_in_process(*TINY, "--topology", "v2-8"), 1, "libtpu", 'pip install ".[tpu]"')


def test_help_needs_no_jax() -> None:
    code = "import sys; sys.modules['jax'] = None; from minibert.cli import main; main()"
    for arguments in (["tpu"], ["tpu", "compile", "--help"], ["tpu", "export", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                              env=environment({}))  # fmt: skip
        assert done.returncode == 0 and "Usage: minibert tpu" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-c", code, *TINY, "--topology", "v2-8"], capture_output=True, text=True,
                          env=environment({}))  # fmt: skip
    assert done.returncode == 1 and 'pip install ".[tpu]"' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(tpu.commands))
def test_help_has_an_example_that_parses(name: str) -> None:
    done = minibert_in_process("tpu", name, "--help")
    example = re.search(rf"^ *Example:\n +.*?minibert tpu {name} (.*)$", done.out, re.M)
    assert done.code == 0 and example, done.out
    parsed("tpu", name, *shlex.split(example[1]))
    assert all(option.help for option in tpu.commands[name].params if isinstance(option, click.Option))


# In a process of its own, as a user's: libtpu stays in the one that has loaded it.
LIBTPU = """
import json
import jax
from minibert import files
from minibert.tpu import compile as ahead, sharding

slices = {name: ahead.describe(name) for name in ahead.TOPOLOGIES}
everywhere = sharding.everywhere(sharding.mesh(slices["v2-8"].cores))

def need(wide):
    x = jax.ShapeDtypeStruct((1024, 1024 * wide), "float32", sharding=everywhere)
    return vars(ahead.needs(jax.jit(lambda x: jax.numpy.sin(x) @ x.T @ x).lower(x), slices["v2-8"]))

small = need(16)
(kept,) = (files.user_cache() / "tpu").iterdir()
kept.write_text(json.dumps(small | {"peak": 123}))
again = need(16)
kept.write_text("{")
cores = {name: [len(found.cores), found.hbm] for name, found in slices.items()}
print(json.dumps([cores, small, again, need(16), need(2048)]))
"""


def test_the_compiler_knows_every_slice_and_its_memory(libtpu: None, tmp_path: Path) -> None:
    here = environment({"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)})
    done = subprocess.run([sys.executable, "-c", LIBTPU], capture_output=True, text=True, env=here)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    slices, small, again, anew, large = json.loads(done.stdout)
    for name, (cores, hbm) in slices.items():
        kind, _, number = name.partition("-")
        assert cores == (int(number) // 2 if kind in ("v4", "v5p") else int(number)), name  # two work as one there
        usable = {"v2": 8, "v3": 16, "v4": 32, "v5e": 16, "v5p": 96, "v6e": 32}[kind]
        assert 0.92 * usable < hbm / GIB < usable, name
    assert small["fits"] is True and small["arguments"] == 2 * 64 * 2**20 < small["peak"]
    assert again == small | {"peak": 123}, "it was compiled again"
    assert anew["peak"] == small["peak"], "what was kept is damaged, and was believed"
    assert large["fits"] is False and large["peak"] > slices["v2-8"][1]


@pytest.mark.slow
def test_the_training_step_of_a_small_model_is_compiled(libtpu: None, tmp_path: Path) -> None:
    done = minibert_process(*TINY, "--topology", "v2-8", "--json", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["fits"] is True and found["cores"] == 8 and found["device"] == "TPU v2"
    assert 3 * forward(1) <= found["operations"] <= 3.3 * forward(1), "each core has one of the eight examples"
    parameters = 4.38e6  # each with two moments
    assert 12 * parameters <= found["arguments"] < 12.5 * parameters and found["peak"] < found["hbm"] / 20


@pytest.mark.slow
def test_large_batches_of_large_do_not_fit_and_what_does_is_found(libtpu: None) -> None:
    large = "--checkpoint", "large", "--task", "squad", "--batch-size", "64"
    done = minibert_process("tpu", "compile", "--topology", "v2-8", *large, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["fits"] is False and found["peak"] > found["hbm"]
    assert found["instead"]["fits"] is True and found["instead"]["peak"] <= found["hbm"]
