"""Draws rows that compare_step.py or compare_inference.py printed as bars, an SVG: how README's picture is made.

python benches/picture.py "A training step of BERT-Base, ms" < rows.md > docs/step.svg
"""

from __future__ import annotations

import sys
from html import escape

LEFT, BAR, ROW, TOP = 190, 420, 26, 40  # pixels
OURS, THEIRS = "#d9541e", "#8a93a0"


def bars(lines: list[str]) -> list[tuple[str, float]]:
    """Side and milliseconds of each row of the table, the fastest first."""
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in lines if line.startswith("|")]
    found = [(row[1], float(row[2].replace(",", ""))) for row in cells if row[2].replace(",", "").isdigit()]
    return sorted(found, key=lambda bar: bar[1])


def svg(title: str, found: list[tuple[str, float]]) -> str:
    """Bars whose lengths are times; each with its own figure and how many times the first's it is."""
    longest, first = max(ms for _, ms in found), found[0][1]
    width, height = LEFT + BAR + 130, TOP + ROW * len(found) + 10
    style = "font-family:sans-serif;font-size:13px;fill:#777"  # readable on light and on dark pages
    rows = [f'<text x="10" y="24" style="{style};font-weight:bold">{escape(title)}</text>']
    for i, (name, ms) in enumerate(found):
        y, length = TOP + ROW * i, max(1, BAR * ms / longest)
        colour = OURS if name.startswith("minibert") else THEIRS
        label = f"{ms:,.0f}" if ms == first else f"{ms:,.0f}  ({ms / first:.1f} x)"
        rows += [
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end" style="{style}">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="18" rx="2" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.0f}" y="{y + 14}" style="{style}">{label}</text>',
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *rows, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(svg(sys.argv[1], bars(sys.stdin.readlines())))
