"""From a file of questions to windows to train on: minibert against the way of transformers' run_qa.py.

    pip install ".[peers]"
    python benches/compare_squad_preparation.py --checkpoint DIR --data train-v1.1.json

Every measurement is a process of its own, the sides in turn; seconds from the file to the last window, and the
process's peak of resident memory, that after its imports beside it. run_qa runs its function by `datasets.map`; here it
is called on as many questions at a time, and what it returns is thrown away: without datasets' copying from and to
Arrow files it is faster than run_qa is. minibert writes its windows into an empty cache and maps them.

run_qa's --doc_stride is what two windows share, Google's the step from one to the next: they make other windows. For
the overlap that is asked for, the number that is due is counted from minibert's tokens and compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from sides import peak_memory

LENGTH, STEP, QUERY = 384, 128, 64
MAP_BATCH = 1000  # questions that datasets.map hands over at once


def minibert(args: argparse.Namespace) -> Callable[[], int]:
    """Windows by minibert; the function returns how many."""
    from minibert.squad import reading, windows
    from minibert.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.checkpoint)

    def run() -> int:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            questions = reading.read(args.data)
            return len(windows.prepare(questions, tokenizer, windows.Lengths(LENGTH, STEP, QUERY), negative=False))

    return run


def run_qa(args: argparse.Namespace, padded: bool) -> Callable[[], int]:
    """Windows by a fast tokenizer of transformers, and where the answers are in them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
    padding = "max_length" if padded else False

    def run() -> int:
        asked, contexts, answers = columns(args.data)
        found = 0
        for low in range(0, len(asked), MAP_BATCH):
            part = slice(low, low + MAP_BATCH)
            made = tokenizer(
                asked[part], contexts[part], truncation="only_second", max_length=LENGTH, stride=args.overlap,
                return_overflowing_tokens=True, return_offsets_mapping=True, padding=padding,
            )  # fmt: skip
            found += len(with_answers(made, answers[part], tokenizer.cls_token_id)["start_positions"])
        return found

    return run


def columns(path: Path) -> tuple[list[str], list[str], list[tuple[str, int]]]:
    """Questions, contexts and first answers with their places, a row a question, as run_qa has them."""
    asked, contexts, answers = [], [], []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                asked.append(qa["question"].lstrip())
                contexts.append(paragraph["context"])
                answers.append((qa["answers"][0]["text"], qa["answers"][0]["answer_start"]))
    return asked, contexts, answers


def with_answers(made, answers: list[tuple[str, int]], cls: int) -> dict[str, list]:
    """The tokenizer's windows with the tokens where each window's answer starts and ends; [CLS] where it has none."""
    owners, offsets = made.pop("overflow_to_sample_mapping"), made.pop("offset_mapping")
    starts, ends = [], []
    for i, places in enumerate(offsets):
        none = made["input_ids"][i].index(cls)
        parts = made.sequence_ids(i)
        text, begin = answers[owners[i]]
        first = parts.index(1)
        last = len(parts) - 1 - parts[::-1].index(1)
        if places[first][0] <= begin and places[last][1] >= begin + len(text):
            while first < len(places) and places[first][0] <= begin:
                first += 1
            while places[last][1] >= begin + len(text):
                last -= 1
            starts.append(first - 1)
            ends.append(last + 1)
        else:
            starts.append(none)
            ends.append(none)
    made["start_positions"], made["end_positions"] = starts, ends
    return made


SIDES: dict[str, Callable[[argparse.Namespace], Callable[[], int]]] = {
    "minibert": minibert,
    "run_qa": lambda args: run_qa(args, padded=True),
    "run_qa, no padding": lambda args: run_qa(args, padded=False),
}


def due(args: argparse.Namespace) -> tuple[int, int, int]:
    """Counted from minibert's tokens: its own windows, those of windows that overlap, questions it leaves out."""
    from minibert.squad import reading, windows
    from minibert.tokenizer import Tokenizer

    questions, tokenizer = reading.read(args.data), Tokenizer.load(args.checkpoint)
    lengths = windows.Lengths(LENGTH, STEP, LENGTH - 4)  # run_qa cuts no question
    made = windows.make(questions, tokenizer, lengths)
    texts = np.diff(made.token_offsets)[[question.paragraph for question in questions]]
    first = made.first[np.searchsorted(made.question, np.arange(len(questions)))]  # [CLS], the question and [SEP]
    room = LENGTH - 1 - first
    more = np.maximum(0, -(-(texts - room) // (room - args.overlap)))
    trained = windows.make(questions, tokenizer, windows.Lengths(LENGTH, STEP, QUERY), negative=False)
    return len(trained), int((1 + more).sum()), len(trained.dropped)


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One side, once, in this process."""
    run = SIDES[name](args)
    imported = peak_memory()
    began = time.perf_counter()
    windows = run()
    return {"windows": windows, "seconds": time.perf_counter() - began, "peak": peak_memory(), "imported": imported}


def apart(name: str, args: argparse.Namespace) -> dict[str, float]:
    """The same in a new process."""
    command = [sys.executable, __file__, "--checkpoint", args.checkpoint, "--data", args.data]
    command += ["--overlap", str(args.overlap), "--side", name]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="directory with a vocabulary and tokenizer.json")
    parser.add_argument("--data", type=Path, required=True, help="a training file of SQuAD 1.1")
    parser.add_argument("--overlap", type=int, default=128, help="run_qa's --doc_stride")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="only this side, once, in this process; prints JSON")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args)))
        return
    rounds = [{name: apart(name, args) for name in SIDES} for _ in range(args.rounds)]
    ours, theirs, dropped = due(args)
    print("| side | windows | due | seconds | times ours | peak MiB | of it imports |\n|---|---|---|---|---|---|---|")
    for name in SIDES:
        runs = [one[name] for one in rounds]
        seconds, peak, imported = (median(run[what] for run in runs) for what in ("seconds", "peak", "imported"))
        times = median(one[name]["seconds"] / one["minibert"]["seconds"] for one in rounds)
        wanted = ours if name == "minibert" else theirs
        print(f"| {name} | {runs[0]['windows']:,} | {wanted:,} | {seconds:.1f} | {times:.2f} | {peak} | {imported} |")
        print(f"  {name}:", *(f"{run['seconds']:.1f}" for run in runs), file=sys.stderr)
    print(f"{dropped} questions are left out by minibert; load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
