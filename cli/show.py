"""How results look on a terminal; the same numbers stand in the run's files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from minibert.finetuning import Run
    from minibert.squad.finetuning import SquadRun


def results(run: Run | SquadRun) -> None:
    """The results of a finished run and where they stand."""
    table(run.results) if "majority" in run.results else squad(run.results)
    click.echo(f"\nmodel and results: {run.path}")


def as_json(values: Any) -> None:
    click.echo(json.dumps(values, indent=2))


def table(values: dict[str, Any]) -> None:
    """Each metric with its interval and that of a model whose answer is always the same; what does not beat it."""
    from minibert.metrics import ERRORS, beats

    constant, who = ("majority", "the majority class's") if "pearson" not in values else ("mean", "that of the mean,")
    click.echo(f"{'':<14}{'result':>9}  {'95 % interval':^17}{constant:>9}")
    for name, value in values.items():
        if isinstance(value, float) and name in values["interval"]:
            low, high = map(figure, values["interval"][name])
            click.echo(f"{name:<14}{figure(value):>9}  {f'{low} to {high}':^17}{figure(values['majority'][name]):>9}")
    click.echo(f"{'loss':<14}{figure(values['loss']):>9}")
    for note in values["notes"]:
        click.echo(f"note: {note}")
    for name, majority in values["majority"].items():
        if not beats(name, values[name], majority):
            click.echo(
                f"{name} {figure(values[name])} is not {'below' if name in ERRORS else 'above'} {who} "
                f"{figure(majority)}: "
                "a model that always says the same scores that; see README, Failed runs"
            )
    for name, part in values.items():
        if isinstance(part, dict) and "beats_majority" in part:
            click.echo(f"\n{name}")
            table(part)


def figure(value: float) -> str:
    """A number of at most nine characters: four decimals, but for errors in a unit of large or of small numbers."""
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.3g}"


def squad(values: dict[str, Any]) -> None:
    """The official evaluator's figures, one a line."""
    for name, value in values.items():
        if "thresh" in name and isinstance(value, float):
            click.echo(f"{name:<18}{value!r:>10}")  # all digits: it is the score of a question, to be given again
        elif not isinstance(value, dict | list):
            click.echo(f"{name:<18}{value:>10.4f}" if isinstance(value, float) else f"{name:<18}{value:>10,}")
    if "cross_fitted" in values:
        click.echo("\nwith thresholds found on other articles")
        squad(values["cross_fitted"])


def answers(question: str, found: list[Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"question": question, "answers": [one._asdict() for one in found]}))
        return
    if not found:  # a text without a word
        click.echo("(no answer in the text)")
    for one in found:
        place = f"{one.start}-{one.end}" if one.text else "none"
        text = " ".join(one.text.split())  # on one line, wherever those of the text end
        click.echo(f"{one.probability:7.4f}  {place:>13}  {text or '(no answer in the text)'}")


def seeds(summary: dict[str, Any]) -> None:
    """One line a seed, then mean and standard deviation."""
    metrics = list(summary["mean"])
    who, row_of = ("the mean", "constant") if "pearson" in metrics else ("the majority class", "majority")
    click.echo(f"{'seed':<10}" + "".join(f"{name:>12}" for name in metrics))
    for run in summary["runs"]:
        note = "" if run["beats_majority"] else f"  does not beat {who}"
        click.echo(f"{run['seed']:<10}" + "".join(f"{figure(run[name]):>12}" for name in metrics) + note)
    for row in ("mean", "deviation", "majority"):
        values = (f"{figure(summary[row][name]):>12}" for name in metrics if name in summary[row])  # no majority's loss
        click.echo(f"{row_of if row == 'majority' else row:<10}" + "".join(values))
    click.echo(f"{summary['failed']} of {len(summary['runs'])} runs failed to beat {who}\n{summary['path']}")
