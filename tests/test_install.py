"""The package on its own: quick to start, compiled once, and at home on machines that give it little."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

import pytest

from commands import ROOT, Done, assert_one_line, command, environment, make_checkpoint, write_mrpc

# One small kernel: its result, how many functions had to be compiled, and where they were kept.
KERNEL = """
import numpy as np
import numba.core.config
from minibert.kernels.bias_tanh import cpu
y = np.empty((1, 1), np.float32)
cpu.forward(y, np.full((1, 1), 0.5, np.float32), np.zeros(1, np.float32))
print(y[0, 0], sum(cpu._forward.stats.cache_misses.values()), numba.core.config.CACHE_DIR)
"""
PARTS = ("minibert", "kernels", "cli")


def child_seconds(arguments: list[str]) -> float:
    """Processor time of a command; on an idle machine it takes as long by the clock, on a busy one longer."""
    before = os.times()
    subprocess.run(arguments, check=True, capture_output=True, env=environment({}))
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def run_kernel(root: Path, cache: Path | None, before: str = "", **env: str | None) -> tuple[float, int, str]:
    env = {"PYTHONPATH": str(root), "XDG_CACHE_HOME": cache and str(cache), **env}
    code = [sys.executable, "-c", before + KERNEL]
    done = subprocess.run(code, cwd=root, capture_output=True, text=True, env=environment(env))
    assert done.returncode == 0, done.stderr
    value, compiled, folder = done.stdout.split()
    return float(value), int(compiled), folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, without links, as an installation is."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "minibert", tmp_path / "copy" / "minibert", ignore=ignore)).parent


def test_help_is_quick() -> None:
    assert statistics.median(child_seconds(command("--help")) for _ in range(5)) < 0.3


def test_help_imports_nothing_heavy() -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "minibert", "finetune", "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment({}))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "click" in imported
    assert not imported & {"numba", "cupy", "jax", "numpy", "tokenizers", "huggingface_hub", "rich", "torch"}


def test_kernels_load_from_the_cache_until_a_helper_is_edited(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    value, compiled, folder = run_kernel(copy, cache)
    assert value == pytest.approx(0.4621, abs=1e-4) and compiled == 1 and folder.startswith(str(cache))
    kept = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nb?")}
    assert len(kept) > 2
    assert run_kernel(copy, cache) == (value, 0, folder)
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nb?")} == kept
    helper = copy / "minibert" / "kernels" / "common" / "elementary.py"
    source = helper.read_text()
    assert source.count("\ndef tanh(x):\n") == 1
    helper.write_text(source.replace("\ndef tanh(x):\n", "\ndef tanh(x):\n    return np.float32(2)\n"))
    edited, compiled, other = run_kernel(copy, cache)
    assert edited == 2 and compiled == 1 and other != folder
    assert run_kernel(copy, cache) == (2, 0, other)


@pytest.mark.slow
def test_nothing_is_compiled_after_minibert_compile(tmp_path: Path) -> None:
    env = environment({"XDG_CACHE_HOME": str(tmp_path)})

    def minibert(*arguments: str | Path, stdin: bytes | None = None) -> set[Path]:
        call = [sys.executable, "-m", "minibert", *map(str, arguments)]
        subprocess.run(call, check=True, env=env, cwd=tmp_path, input=stdin, capture_output=True)
        return {*tmp_path.rglob("*.nb?")}

    kept = minibert("compile")
    assert kept
    for precision in ("fp32", "bf16"):
        for n, more in enumerate(
            ["", "--micro-batch 8", "--recompute cheap --optimizer adam8bit", "--layerwise-update"]
        ):
            run = tmp_path / f"{precision}-{n}"
            train = ("finetune", "mrpc", "--sample", "--epochs", "0.02", "--precision", precision, "--output-dir", run)
            assert minibert(*train, *more.split()) == kept, more
        assert minibert("predict", run, "--precision", precision, stdin=b"a b\tc d\n" * 70) == kept


def powerless() -> list[str]:
    """What makes a command heed the permissions of files: nothing, or for root the loss of its privilege."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to take that away")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


@pytest.mark.parametrize("home", ["/dev/null/home", None])
def test_a_user_without_a_home(home: str | None) -> None:
    """Not one in the environment, nor in the system's list of users."""
    unknown = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n"
    value, _, folder = run_kernel(ROOT, None, unknown if home is None else "", HOME=home)
    assert value == pytest.approx(0.4621, abs=1e-4) and Path(folder).parent == Path(tempfile.gettempdir())
    assert not Path(folder).exists()
    code = "from minibert.files import user_cache\nprint(user_cache())"
    env = environment({"HOME": home, "XDG_CACHE_HOME": None})
    done = subprocess.run([sys.executable, "-c", unknown + code], capture_output=True, text=True, env=env, check=True)
    place = Path(done.stdout.strip())
    assert place.is_absolute() and place.parent == Path(tempfile.gettempdir()) and not place.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of files are Unix's")
@pytest.mark.parametrize("mode, home", [(0o000, "home"), (0o000, "."), (0o555, "nonexistent")])
def test_a_home_that_is_closed_or_missing(tmp_path: Path, mode: int, home: str) -> None:
    """As after su, which leaves HOME=/root, and as the system's own users have it: HOME=/nonexistent."""
    prefix = powerless()
    (tmp_path / "above" / "home").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    places = {"HOME": str(tmp_path / "above" / home), "TMPDIR": str(tmp_path / "temporary")}
    env = environment(places | {"XDG_CACHE_HOME": None})
    code = (
        "from numba.core import config; from minibert.files import user_cache\n"
        "import minibert.kernels.devices.compiling\n"
        "print(user_cache(), config.CACHE_DIR, sep='\\n')"
    )
    (tmp_path / "above").chmod(mode)
    try:
        done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True, env=env)
    finally:
        (tmp_path / "above").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert [Path(line).parent for line in done.stdout.splitlines()] == [tmp_path / "temporary"] * 2
    assert not list((tmp_path / "temporary").iterdir()), "they go with the process"


def with_a_closed_cache(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python, where a file stands in the way of the cache; what it had put into the temporary folder is gone."""
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    env = environment({"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "temporary")})
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    assert not list((tmp_path / "temporary").iterdir())
    return done


TOLD = "/file: cannot be written (Not a directory), so that compiled kernels are kept for one run only; set XDG_CACHE"


def test_that_kernels_are_not_kept_is_told_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from minibert.kernels import devices; from minibert.kernels.devices import compiling\n"
        "print('imported', file=sys.stderr); devices.open('cpu'); devices.open('cpu')\n"
        "if os.fork() == 0: sys.exit()\n"  # which leaves the folder alone
        "os.wait(); print(os.path.exists(compiling.numba.core.config.CACHE_DIR))"
    )
    done = with_a_closed_cache(tmp_path, "-W", "always", "-c", code)
    assert done.returncode == 0 and done.stdout == "True\n"
    before, after = done.stderr.split("imported\n")
    assert before == "" and after.count(TOLD) == 1


def test_what_needs_no_kernels_tells_nothing_of_their_cache(tmp_path: Path) -> None:
    done = with_a_closed_cache(tmp_path, "-m", "minibert", "--help")
    assert done.returncode == 0 and done.stderr == ""


def test_the_command_line_tells_it_in_a_line_of_its_own(tmp_path: Path) -> None:
    few = ("--checkpoint", "tiny", "--memory", "1GB", "--max-seq-length", "64")
    done = with_a_closed_cache(tmp_path, "-m", "minibert", "plan", *few)
    assert done.returncode == 0 and done.stderr.startswith("minibert: ") and TOLD in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_warnings_of_others_are_shown_as_python_shows_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minibert import cli

    shown: list[tuple] = []
    for category, where in ((UserWarning, zipfile.__file__), (DeprecationWarning, cli.__file__)):
        cli._show_warning(lambda *given: shown.append(given), category("old"), category, where, 1)
    assert len(shown) == 2 and capsys.readouterr().err == ""


def test_compile_where_nothing_would_be_kept_is_an_error(tmp_path: Path) -> None:
    done = with_a_closed_cache(tmp_path, "-m", "minibert", "compile")
    assert_one_line(Done(done.returncode, done.stdout, done.stderr), 1, "nothing is compiled: ", TOLD)


def test_a_run_that_could_not_be_published_stays_in_a_temporary_cache(tmp_path: Path) -> None:
    """And whatever else is there goes."""
    for kept in (False, True):
        make = "(folder / 'unpublished-bucket-1').mkdir()" if kept else "(folder / 'glue').mkdir()"
        code = f"from minibert import files\nfolder = files._temporary_cache()\n{make}\nprint(folder)"
        env = environment({"TMPDIR": str(tmp_path)})
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        assert Path(done.stdout.strip()).exists() == kept


def test_old_kernels_are_cleared_away_when_new_ones_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minibert.kernels.devices import compiling

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ages = {"unused": 31, "recent": 29}  # days
    kernels = tmp_path / "minibert" / "kernels"
    for name, days in ages.items():
        (kernels / name / "inside").mkdir(parents=True)
        os.utime(kernels / name, (time.time() - days * 86400,) * 2)
    ours = compiling.cache_directory()
    assert {path.name for path in kernels.iterdir()} == {"recent", ours.name}
    long_ago = (time.time() - 31 * 86400,) * 2
    os.utime(ours, long_ago)
    os.utime(kernels / "recent", long_ago)
    assert compiling.cache_directory() == ours and time.time() - ours.stat().st_mtime < 86400, "a use counts"
    assert (kernels / "recent").exists(), "nothing new, nothing cleared"


@pytest.mark.slow  # compiles all kernels
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of files are Unix's")
def test_an_install_and_a_home_that_cannot_be_written(copy: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint")
    write_mrpc(tmp_path / "glue")
    (tmp_path / "home").mkdir()
    folders = [tmp_path / "home", *(path for path in copy.rglob("*") if path.is_dir())]
    before = sorted(copy.rglob("*"))
    for folder in folders:
        os.chmod(folder, 0o555)
    more = ("--checkpoint", "checkpoint", "--data-dir", "glue", "--batch-size", "8", "--max-seq-length", "32")
    env = {"PYTHONPATH": str(copy), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": None, "TMPDIR": str(tmp_path)}
    arguments = [*powerless(), *command("finetune", "mrpc", *more, "--output-dir", "run")]
    refused = subprocess.run([*powerless(), "touch", str(copy / "minibert" / "file")], capture_output=True)
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(env), capture_output=True, text=True)
    for folder in folders:
        os.chmod(folder, 0o755)
    assert refused.returncode != 0 and done.returncode == 0, done.stderr
    assert sorted(copy.rglob("*")) == before and not list((tmp_path / "home").iterdir())
    assert "set XDG_CACHE_HOME to a folder" in done.stderr and not list(tmp_path.glob("minibert-*"))


@pytest.mark.slow
def test_a_wheel_holds_everything_and_works_where_it_is_installed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (*PARTS, "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # pip fetches the setuptools that pyproject.toml wants: a new environment's own may be older, or not be there.
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(source)) if part == "minibert" else f"minibert/{path.relative_to(source)}"
        for part in PARTS
        for path in (source / part).rglob("*")
        if path.is_file()
    }
    assert held == wanted
    assert {"minibert/py.typed", "minibert/models/vocab.txt", "minibert/kernels/matmul/cpu.py"} <= held

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    Path(target, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # found after the wheel's own
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = "import minibert.kernels.matmul, minibert.models as m; print(m.__file__, m.VOCAB.stat().st_size)"
    done = subprocess.run([python, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(target)
    script = tmp_path / "venv" / "bin" / "minibert"
    done = subprocess.run([script, "--version"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1][0].isdigit()
    make_checkpoint(tmp_path / "checkpoint")
    write_mrpc(tmp_path / "glue")
    more = ("--checkpoint", "checkpoint", "--data-dir", "glue", "--batch-size", "8", "--max-seq-length", "32")
    arguments = [script, "finetune", "mrpc", *more, "--output-dir", "run"]
    done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


GRADIENTS = """
import sys, zlib
sys.path.insert(0, sys.argv[1])
from models import trainer
t = trainer()
with t.bert.device.session():
    for step in range(2):
        t.step(step)
print([zlib.crc32(a.tobytes()) for a in t.bert.arrays().values()])
"""


def test_kernels_give_the_same_bits_freshly_compiled_and_from_the_cache(tmp_path):
    """A helper that is not inlined has a copy in every caller's object, and which one is linked depends on that."""
    variables = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", GRADIENTS, str(ROOT / "tests")]
    first, second = (
        subprocess.run(call, env=variables, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second


def test_a_temporary_folder_goes_with_its_process_and_not_with_one_that_was_forked_from_it(tmp_path: Path) -> None:
    for kept in (False, True):
        code = (
            "import os; from minibert import temporary\n"
            f"folder = temporary.folder('minibert-here-', lambda folder: {kept} and (folder / 'kept').exists())\n"
            "(folder / 'kept').touch()\n"
            "if os.fork() == 0: raise SystemExit\n"
            "os.wait(); print(folder, folder.exists())"
        )
        env = environment({"TMPDIR": str(tmp_path)})
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        made, alive = done.stdout.split()
        assert alive == "True" and Path(made).parent == tmp_path and Path(made).exists() == kept
