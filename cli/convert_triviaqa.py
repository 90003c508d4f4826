"""minibert convert-triviaqa: TriviaQA's questions and documents as a SQuAD file to train on."""

from __future__ import annotations

from pathlib import Path

import click

SHOWN = 5  # names, of what was left out


@click.command(
    "convert-triviaqa",
    epilog="\b\nExample:\n  minibert convert-triviaqa qa/wikipedia-train.json evidence triviaqa-train.json",
)
@click.argument("qa", metavar="QA.json", type=click.Path(path_type=Path))
@click.argument("evidence", metavar="EVIDENCE_DIR", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.json", type=click.Path(path_type=Path))
@click.option("--max-tokens", type=click.IntRange(1), default=800, show_default=True,
              help="How many words and punctuation marks of each document are kept.")  # fmt: skip
@click.option("--seed", type=int, default=42, show_default=True, help="Of the order of questions and documents.")
def convert_triviaqa(qa: Path, evidence: Path, out: Path, max_tokens: int, seed: int) -> None:
    """Writes TriviaQA's questions in the format of SQuAD 1.1.

    Those of QA.json go into OUT.json, with their documents: EVIDENCE_DIR holds TriviaQA's folders wikipedia and web. A
    question becomes one entry per document in which one of its answers occurs as whole words; what is left out is
    counted on stderr.
    """
    from minibert.squad import triviaqa

    summary = triviaqa.convert(qa, evidence, out, max_tokens, seed)
    click.echo(" ".join(f"{name}={count}" for name, count in summary.counts().items()), err=True)
    left_out = {"missing": summary.missing, "questions without a match": summary.questions_without_match}
    for what, names in left_out.items():
        if names:
            click.echo(f"{what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}", err=True)
