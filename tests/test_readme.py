"""README's commands exist, its Python runs, and nothing in the docs installs somebody else's package."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from commands import parsed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands() -> list[str]:
    """Every call of minibert in README's shell blocks, without what it is piped to."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    calls = [re.search(r"(?:^|[|&] ?|/bin/)minibert (.*)$", line) for line in lines]
    return [re.split(r" [|#]", call[1])[0] for call in calls if call]


def test_readme_opens_with_two_commands_that_do_all_the_set_up():
    first, second = blocks("sh")[:2]
    assert first == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/minibert finetune mrpc --sample\n"
    install = 'python3 -m venv .venv && .venv/bin/pip install -q -e ".[test]"'
    assert second == f"{install} && .venv/bin/python -m pytest -q -n 2 --dist worksteal\n"
    assert "«" not in README, "a figure is missing"


@pytest.mark.parametrize("command", commands())
def test_commands_of_readme_parse(command):
    parsed(*shlex.split(command))


def test_readme_has_commands_to_parse():
    assert len(commands()) >= 10


def test_the_python_of_readme_runs(tmp_path, monkeypatch, capsys):
    import minibert.kernels.devices.cpu  # noqa: F401 - before the cache moves: compiled kernels stay where they are
    from minibert.tasks import sample

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sample.DEFAULTS, "epochs", 0.05)  # the lines, not the figures, are what is tested
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2 and all("{" in answer for answer in answers)


@pytest.mark.parametrize("path", [p for top in (ROOT, ROOT / "docs") for p in top.glob("*.md")], ids=lambda p: p.name)
def test_nothing_tells_to_install_the_package_index_s_minibert(path):
    assert not re.search(r"pip install (-\S+ )*[\"']?minibert", path.read_text())
