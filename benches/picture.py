"""Pictures, SVG, from what other commands print.

    python benches/picture.py times "Time of a training step, minibert in bf16 = 1" < rows.md > docs/step.svg
    minibert plan --checkpoint large --task squad --memory 12GB --precision fp32 --json > plan.json
    python benches/picture.py batches < plan.json > docs/batches.svg

`times` draws rows that compare_step.py or compare_inference.py printed, as bars: how many times as long as the first
side, both in turns, because a shared machine is not as fast in one minute as in the next; `batches` the largest
micro-batches of a plan, as dots on a logarithmic scale.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from typing import Any

LEFT, BAR, ROW, TOP = 190, 420, 26, 40  # pixels
OURS, THEIRS = "#d9541e", "#8a93a0"
STYLE = "font-family:sans-serif;font-size:13px;fill:#777"  # readable on light and on dark pages


def times(lines: list[str]) -> list[tuple[str, float]]:
    """Side and ratio to the first side of each row of the table, the fastest first."""
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in lines if line.startswith("|")]
    found = [(row[1], float(row[4])) for row in cells if row[4].replace(".", "").isdigit()]
    return sorted(found, key=lambda bar: bar[1])


def bars(title: str, found: list[tuple[str, float]]) -> str:
    """Bars whose lengths are ratios, and these: milliseconds of different minutes would contradict them."""
    longest = max(ratio for _, ratio in found)
    rows = []
    for i, (name, ratio) in enumerate(found):
        y, length = TOP + ROW * i, max(1, BAR * ratio / longest)
        colour = OURS if name.startswith("minibert") else THEIRS
        rows += [
            _text(LEFT - 8, y + 14, name, "end"),
            f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="18" rx="2" fill="{colour}"/>',
            _text(LEFT + length + 6, y + 14, f"{ratio:.1f}"),
        ]
    return _svg(title, TOP + ROW * len(found) + 10, rows)


def dots(plan: dict[str, Any]) -> str:
    """A line a length of sequences, from a batch of 1 to one of 2,000, with TensorFlow's largest batch and ours; where
    not one sequence fits, the dot stands before the line.
    """
    rows, x = [], 30
    policies = {"none": 0.4, "layers": 0.7, list(plan["columns"])[3]: 1.0}  # and how opaque their dots are
    sides = {"TensorFlow": ("TensorFlow 1.11", THEIRS, 1.0)}
    sides |= {name: (f"minibert, {name}", OURS, opacity) for name, opacity in policies.items()}
    for name, colour, opacity in sides.values():  # the legend
        rows += [_dot(x, TOP + 10, colour, opacity), _text(x + 9, TOP + 15, name)]
        x += 36 + 7 * len(name)
    for i, row in enumerate(plan["rows"]):
        y = TOP + 48 + 36 * i
        rows.append(_text(100, y + 5, f"{row['max_seq_length']} tokens", "end"))
        rows.append(f'<path d="M{_at(1):.0f} {y}H{_at(2000):.0f}" stroke="{THEIRS}" stroke-opacity="0.35"/>')
        for name, (_, colour, opacity) in sides.items():
            count = row["largest"].get(name, row["tensorflow"])
            rows += [_dot(_at(count), y, colour, opacity), _text(_at(count), y - 9, f"{count:,}", "middle")]
    title = f"BERT-{plan['checkpoint'].title()} in {plan['memory'] / 1e9:.0f} GB: the largest batch that fits at once"
    return _svg(title, TOP + 30 + 36 * len(plan["rows"]), rows)


def _at(count: int) -> float:
    return 140 + 580 * math.log(count) / math.log(2000) if count else 122


def _dot(x: float, y: float, colour: str, opacity: float) -> str:
    return f'<circle cx="{x:.0f}" cy="{y}" r="5" fill="{colour}" fill-opacity="{opacity}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" style="{STYLE}{more}">{escape(text)}</text>'


def _svg(title: str, height: int, rows: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + BAR + 150}" height="{height}" role="img">'
    heading = _text(10, 24, title, more=";font-weight:bold")
    return "\n".join([head, f"<title>{escape(title)}</title>", heading, *rows, "</svg>"]) + "\n"


if __name__ == "__main__":
    if sys.argv[1] == "batches":
        sys.stdout.write(dots(json.load(sys.stdin)))
    else:
        sys.stdout.write(bars(sys.argv[2], times(sys.stdin.readlines())))
