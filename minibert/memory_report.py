"""Where memory goes: bytes by kind and by layer, and over the time of one training step."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minibert import files
from minibert.parameters import Group
from minibert.training import Step, Trainer, count_tokens

JSON, PICTURE = "memory.json", "memory.png"
MARK = "mark"  # the kind of an entry of the log that marks a place


def observed(trainer: Trainer, step: int) -> tuple[Callable[[], Step], dict[str, Any]]:
    """Begins a training step; what waits for it, and what the device saw, as memory.json has it: docs/files.md."""
    device, bert = trainer.bert.device, trainer.bert
    marks: list[tuple[str, bool]] = []

    def mark(group: Group, back: bool) -> None:
        log.append((MARK, len(marks)))
        marks.append((group.name, back))

    log: list[tuple[str, int]] = []
    use = Counter({kind: n for kind, n in device.in_use.items() if n})
    device.log = log
    bert.watchers.append(mark)
    try:
        begun = trainer.begin(step)
    finally:
        bert.watchers.remove(mark)
        device.log = None
    curve, places, peak, kept = [dict(use)], [], dict(use), {}
    entered: tuple[str, int] | None = None
    for kind, n in log:
        if kind == MARK:
            name, back = marks[n]
            places.append({"at": len(curve), "group": name, "pass": "backward" if back else "forward"})
            if entered and entered[0] not in kept:
                kept[entered[0]] = use["activations"] - entered[1]
            entered = None if back else (name, use["activations"])
            continue
        use[kind] += n
        curve.append(dict(use))
        peak = max(peak, curve[-1], key=lambda kinds: sum(kinds.values()))
    moments = _moments(trainer)
    layers = [
        {
            "name": group.name,
            "weights": group.nbytes,
            "gradients": group.weights.nbytes,
            "moments": moments[group.name],
            "activations": kept.get(group.name, 0),
        }
        for group in bert.groups
    ]
    stage, number = trainer.at(step)
    tokens = count_tokens(stage.numbers(number), stage.data)
    return begun, {"tokens": tokens, "peak": peak, "layers": layers, "marks": places, "curve": curve}


def _moments(trainer: Trainer) -> Counter[str]:
    """The optimizer's bytes for each group: its arrays are called KIND/GROUP, or KIND/GROUP/PARAMETER."""
    found: Counter[str] = Counter()
    for name, array in trainer.optimizer.state():
        found[name.split("/")[1]] += array.nbytes
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The report as text: megabytes."""
    peak, kinds = found["peak"], ("weights", "gradients", "moments", "activations")
    told = ", ".join(f"{kind} {n / 1e6:,.1f}" for kind, n in peak.items())
    rows = [f"memory of a step of {found['tokens']:,} tokens, MB: at its peak {sum(peak.values()) / 1e6:,.1f}: {told}"]
    rows.append(f"{'':<20}" + "".join(f"{kind:>13}" for kind in kinds))
    rows += [f"{row['name']:<20}" + "".join(f"{row[kind] / 1e6:>13,.1f}" for kind in kinds) for row in found["layers"]]
    return rows


def write(folder: Path, found: dict[str, Any]) -> str:
    """memory.json, and memory.png where matplotlib is installed; returns a line that says so."""
    files.write_whole(folder / JSON, json.dumps(found).encode() + b"\n")
    if importlib.util.find_spec("matplotlib") is None:
        return f'written: {folder / JSON}; {PICTURE} needs matplotlib: pip install ".[plot]" in the checkout'
    files.write_whole(folder / PICTURE, picture(found))
    return f"written: {folder / JSON}, {folder / PICTURE}"


def picture(found: dict[str, Any]) -> bytes:
    """A PNG: the bytes of each kind, one upon the other, from array to array of the step."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    kinds = [kind for kind in ("weights", "moments", "gradients", "activations", "workspace") if kind in found["peak"]]
    heights = [[point.get(kind, 0) / 1e9 for point in found["curve"]] for kind in kinds]
    axes.stackplot(range(len(found["curve"])), heights, labels=kinds, step="post", linewidth=0)
    turn = next((mark["at"] for mark in found["marks"] if mark["pass"] == "backward"), None)
    if turn is not None:
        axes.axvline(turn, color="black", linewidth=0.8)
        axes.text(turn, 0.02, " backward", transform=axes.get_xaxis_transform())
    axes.set(xlabel="arrays allocated and freed", ylabel="GB", title=f"Memory of a step of {found['tokens']:,} tokens")
    axes.margins(0)
    axes.legend(loc="upper left", reverse=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
