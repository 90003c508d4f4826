"""Who may import whom: the source is read, so that the table in docs/design.md stays true."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Every module of the package and what else of the package it may import; `*` stands for anything.
ALLOWED = {
    "cli": "*",
    "__main__": "cli",
    "__init__": "errors finetuning seeds model squad",  # on first use
    "begun": "runs settings remote errors",
    "finetuning": "begun starting planning units kernels config loop training evaluation bert tasks datasets hub "
    "checkpoint model runs settings progress random tokenizer remote files errors",
    "starting": "planning memory_report training evaluation runs settings config checkpoint hub kernels tpu progress "
    "random remote files errors",
    "tpu": "training evaluation bert batch squad runs optim parameters settings random tokenizer checkpoint config hub "
    "kernels files temporary errors",
    "seeds": "begun starting finetuning hub checkpoint settings tasks runs progress remote gcs files errors",
    "evaluation": "begun bert metrics model runs tasks datasets tokenizer remote errors",
    "estimator": "starting planning kernels loop training evaluation prediction bert model runs optim settings "
    "progress random tasks tokenizer checkpoint latest mirror remote files errors",
    "warming": "training evaluation bert config model settings squad tokenizer kernels errors",
    "prediction": "model runs tasks progress remote files errors",
    "doctor": "kernels errors",
    "benchmarks": "limits kernels",
    "limits": "kernels",
    "squad": "begun squad estimator starting loop training evaluation model bert ops autograd batch checkpoint "
    "config datasets hub planning policies runs settings progress random tasks tokenizer tpu kernels mirror remote "
    "files errors",
    "loop": "training runs progress errors",
    "units": "evaluation bert tasks checkpoint errors",
    "training": "replay evaluation bert batch optim optimizers parameters policies settings random autograd tpu "
    "kernels errors",
    "replay": "bert batch parameters random tokenizer kernels",
    "model": "bert batch checkpoint config hub models runs settings tasks tokenizer autograd tpu kernels remote errors",
    "runs": "checkpoint mirror remote files optim tpu errors",
    "bert": "ops autograd batch config policies parameters random tokenizer kernels errors",
    "ops": "autograd batch parameters random kernels",
    "autograd": "",
    "parameters": "kernels",
    "batch": "tokenizer kernels",
    "optim": "parameters",
    "optimizers": "optim parameters kernels",
    "random": "kernels",
    "settings": "policies tpu kernels errors",
    "planning": "chain memory training evaluation config hub model policies settings kernels errors",
    "memory": "replay training evaluation squad bert batch autograd config policies random settings tokenizer kernels "
    "errors",
    "chain": "memory",
    "memory_report": "training parameters files",
    "policies": "errors",
    "progress": "errors",
    "metrics": "errors",
    "tokenizer": "files errors",
    "tasks": "tasks models remote files errors",
    "checkpoint": "checkpoint config files zips latest temporary remote models random tokenizer errors",
    "models": "models config files errors",
    "hub": "checkpoint config datasets google models remote files errors",
    "google": "checkpoint files errors",
    "datasets": "files models tarball zips errors",
    "tarball": "files errors",
    "config": "errors",
    "files": "gcs temporary errors",
    "temporary": "",
    "zips": "",
    "gcs": "errors",
    "latest": "files errors",
    "remote": "files gcs latest errors",
    "mirror": "remote files temporary gcs errors",
    "errors": "",
    "kernels": "kernels temporary errors",
}

# Heavy packages and the only places that may import them.
HOMES = {
    "numba": ("kernels/*/cpu*.py", "kernels/devices/compiling.py", "kernels/devices/binding.py", "kernels/common/*.py"),
    "llvmlite": ("kernels/devices/compiling.py", "kernels/devices/binding.py", "kernels/common/*.py"),
    "cupy": ("kernels/*/gpu.py", "kernels/devices/gpu.py"),
    "jax": ("minibert/tpu/*.py",),
    "click": ("cli/*.py",),
    "gcsfs": ("minibert/gcs.py",),
    "aiohttp": ("minibert/gcs.py",),
    "torch": (),
    "tensorflow": (),
}


def sources() -> list[Path]:
    found = [p for top in ("minibert", "kernels", "cli") for p in (ROOT / top).rglob("*.py")]
    links = {ROOT / "minibert" / "kernels", ROOT / "minibert" / "cli"}
    return [p for p in found if not links & set(p.parents)]


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of what a module imports, at any depth; relative imports resolved inside the package."""
    package = path.relative_to(ROOT).with_suffix("").parts
    package = package if package[0] == "minibert" else ("minibert", *package)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def area(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "minibert" else parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    allowed = ALLOWED[area(path)].split()
    if allowed == ["*"]:
        return
    known = {name for name in ALLOWED if not name.startswith("__")}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "minibert" and len(parts) > 1 and parts[1] in known and parts[1] != area(path):
            assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", HOMES)
def test_heavy_packages_stay_at_home(package):
    homes = {p for pattern in HOMES[package] for p in ROOT.glob(pattern)}
    for path in sources():
        used = {name.split(".")[0] for name in imports(path)}
        assert package not in used or path in homes, f"{path.relative_to(ROOT)} imports {package}"


def test_importing_minibert_and_its_command_line_loads_nothing_heavy():
    code = (
        "import sys, minibert, minibert.cli\n"
        "heavy = {'numba', 'cupy', 'jax', 'numpy', 'tokenizers', 'huggingface_hub', 'rich'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_tracked_file_is_a_stray():
    """The top level is what docs/design.md draws."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("only git, in a checkout, knows what is tracked")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.partition("/")[0] for line in tracked.splitlines() if "/" in line}
    assert folders == {".ci", "minibert", "kernels", "cli", "tests", "benches", "docs", "tools"}
