"""docs/kernels.md, as far as the sources can be asked: one signature per operation, no allocation in kernels."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "kernels"
OPERATIONS = sorted(path.parent.name for path in KERNELS.glob("*/reference.py"))
ENTRIES = ("workspace", "forward", "backward", "update")
ALLOCATES = re.compile(
    r"(np|numpy|cp|cupy)\.(empty|zeros|ones|full|array|copy|ascontiguousarray|asfortranarray|concatenate|stack|[vh]stack"
    r"|tile|repeat|arange|linspace|pad|\w+_like)"
)
COPIES = {"copy", "astype", "flatten", "tolist", "tobytes"}


def signatures(path: Path) -> dict[str, list[str]]:
    """The arguments of a backend's entry points, defaults included, read without importing it."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        function.name: [ast.unparse(argument.arg_) if hasattr(argument, "arg_") else argument.arg
                        for argument in function.args.args] + [ast.unparse(d) for d in function.args.defaults]
        for function in functions if function.name in ENTRIES
    }


def allocations(source: str) -> list[str]:
    """Calls that make an array, as `line: call`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if ALLOCATES.fullmatch(name) or node.func.attr in COPIES:
                found.append(f"{node.lineno}: {name}")
    return found
