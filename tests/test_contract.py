"""docs/kernels.md, as far as the sources can be asked: one signature per operation, and no allocation in kernels."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from minibert import kernels

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "kernels"
OPERATIONS = sorted(path.parent.name for path in KERNELS.glob("*/reference.py"))
BACKENDS = sorted(path for name in OPERATIONS for path in KERNELS.glob(f"{name}/[cg]pu*.py"))
SHARED = [KERNELS / "matmul" / "portions.py", KERNELS / "feed_forward" / "fused.py"]  # whose methods some of these have
ENTRIES = ("workspace", "forward", "backward", "update")
ALLOCATES = re.compile(
    r"(np|numpy|cp|cupy)\.(empty|zeros|ones|full|array|copy|ascontiguousarray|asfortranarray|concatenate|[hvd]?stack"
    r"|tile|repeat|arange|linspace|pad|\w+_like)"
)
COPIES = {"copy", "astype", "flatten"}


def signatures(path: Path) -> dict[str, str]:
    """The entry points of a backend with their arguments, defaults included; read, not imported, unless they are
    methods that the module has from elsewhere.
    """
    if re.search(r"^workspace, forward, backward = ", path.read_text(), re.MULTILINE):
        module = kernels.load(path.parent.name, path.stem)
        methods = {name: inspect.signature(getattr(module, name)) for name in ENTRIES if hasattr(module, name)}
        bare = {name: [p.replace(annotation=p.empty) for p in m.parameters.values()] for name, m in methods.items()}
        return {name: f"({', '.join(map(str, parameters))})" for name, parameters in bare.items()}
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    found = {}
    for function in functions:
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
            argument.annotation = None
        if function.name in ENTRIES:
            found[function.name] = f"({ast.unparse(function.args)})"
    return found


def documented() -> dict[str, dict[str, str]]:
    """The table of docs/kernels.md as {operation: {entry: arguments}}."""
    table = {}
    for line in (ROOT / "docs" / "kernels.md").read_text().splitlines():
        if re.match(r"\| [a-z]", line) and not line.startswith("| operation"):
            name, forward, backward, workspace = (cell.strip() for cell in line.strip("|").split("|"))
            entries = {"forward": forward, "backward": backward, "workspace": workspace}
            if named := re.match(r"`(\w+)`", forward):
                entries[named[1]] = entries.pop("forward")[named.end() :]
            table[name] = {entry: arguments for entry, arguments in entries.items() if arguments}
    return table


def allocations(source: str) -> list[str]:
    """Calls that make an array, as `line: name`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    named = [(call, ast.unparse(call.func)) for call in calls if isinstance(call.func, ast.Attribute)]
    return [f"{call.lineno}: {name}" for call, name in named if ALLOCATES.fullmatch(name) or call.func.attr in COPIES]


def test_there_are_operations():
    assert {"matmul", "attention", "adam"} <= set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_signatures_are_those_of_the_contract(operation):
    assert signatures(KERNELS / operation / "reference.py") == documented()[operation]


@pytest.mark.parametrize("path", BACKENDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_backends_have_the_reference_s_signatures(path):
    assert signatures(path) == signatures(path.parent / "reference.py")


@pytest.mark.parametrize("path", BACKENDS + SHARED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_kernels_allocate_nothing(path):
    assert allocations(path.read_text()) == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_described(operation):
    """`__init__.py` is the formula in a docstring, and no code."""
    tree = ast.parse((KERNELS / operation / "__init__.py").read_text())
    assert len(ast.get_docstring(tree) or "") > 60
    assert len(tree.body) == 1


@pytest.mark.parametrize(
    "line",
    ["y = np.empty(3)", "y = np.zeros_like(x)", "y = x.copy()", "f(x.astype(np.float32) + 1)", "np.concatenate(a)"],
)
def test_allocations_are_found(line):
    assert allocations(line)


def test_views_are_no_allocations():
    assert allocations("y = np.add(x.reshape(-1), scratch.view(np.float32), out=y); n = np.float32(1)") == []


def test_a_changed_argument_is_found(tmp_path):
    (tmp_path / "a.py").write_text("def forward(y: int, x) -> None: ...\ndef _helper(): ...")
    (tmp_path / "b.py").write_text("def forward(x, y) -> None: ...")
    (tmp_path / "c.py").write_text("def forward(y, x=1) -> None: ...")
    assert signatures(tmp_path / "a.py") == {"forward": "(y, x)"}
    assert len({str(signatures(tmp_path / name)) for name in ("a.py", "b.py", "c.py")}) == 3
