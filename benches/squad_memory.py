"""What prediction holds in memory for few and for many questions: the peak must not follow their number.

    python benches/squad_memory.py --checkpoint DIR --data dev-v1.1.json --questions 1000 4000 10570

Each row is a process of its own: the file cut to so many questions, or repeated until it has them, windows, the reader
with a head that is drawn, the n best written. "Read" is what is resident when the file is checked and the model is
loaded, "peak" the most there was since the model was loaded, "activations" the model's part of that, which follows the
largest batch: the more questions, the larger. "At the end" is what is left without pages of files and shared memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import MIB, forget_peak, peak_memory

from minibert import checkpoint
from minibert.checkpoint import names
from minibert.model import open_device, tokenizer_of
from minibert.random import initial_weights
from minibert.squad import reading, spans
from minibert.squad.answering import Answerer
from minibert.squad.evaluation import write_all
from minibert.squad.reader import Reader
from minibert.squad.settings import SquadConfig


def cut(data: Path, count: int, target: Path) -> None:
    """Writes the file's first questions, from its beginning again where it has fewer."""
    articles: list[Any] = []
    while count:
        for article in json.loads(data.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                paragraph["qas"] = paragraph["qas"][:count]
                count -= len(paragraph["qas"])
                for question in paragraph["qas"]:
                    question["id"] += f"-{len(articles)}"
            article["paragraphs"] = [paragraph for paragraph in article["paragraphs"] if paragraph["qas"]]
            articles.append(article)
    target.write_text(json.dumps({"data": articles}))


def resident(kind: str) -> int:
    """MiB of this process in memory now: VmRSS, all of it, or RssAnon, what belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) // MIB


def measure(args: argparse.Namespace, count: int, folder: Path) -> dict[str, Any]:
    """Predicts so many questions in this process."""
    parts = reading.parts(folder / "data.json")
    found = checkpoint.load(args.checkpoint, spans=True)
    config = dataclasses.replace(found.config, num_hidden_layers=args.layers or found.config.num_hidden_layers)
    if args.width:
        config = dataclasses.replace(
            config, hidden_size=args.width, intermediate_size=4 * args.width, num_attention_heads=2
        )
    shapes = names.shapes(config, spans=True)
    drawn = initial_weights(
        shapes if args.width else {name: shapes[name] for name in names.SPANS}, config.initializer_range, 1
    )
    reader = Reader(config, open_device("auto", args.threads, args.precision))
    reader.fill(drawn if args.width else found.arrays | drawn)
    tokenizer = tokenizer_of(found)
    del found, drawn
    forget_peak()
    read = resident("VmRSS")
    began = time.perf_counter()
    settings = SquadConfig(task="squad", precision=args.precision)
    written = write_all(Answerer(reader, tokenizer, settings), parts, folder)
    seconds = time.perf_counter() - began
    assert written == count
    return {
        "questions": count, "file": (folder / "data.json").stat().st_size / 1e6, "read": read, "peak": peak_memory(),
        "activations": reader.device.peak["activations"] >> 20, "end": resident("RssAnon"),
        "n best": (folder / spans.N_BEST).stat().st_size / 1e6, "seconds": seconds,
    }  # fmt: skip


def apart(args: argparse.Namespace, count: int) -> dict[str, Any]:
    """The same in a new process, with an empty cache for windows; kernels are where they always are."""
    with tempfile.TemporaryDirectory() as name:
        cut(args.data, count, Path(name) / "data.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--only", str(count), "--folder", name]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="directory in Hugging Face's form")
    parser.add_argument("--data", type=Path, required=True, help="a file of SQuAD 1.1")
    parser.add_argument("--questions", type=int, nargs="+", default=[1000, 4000, 10570])
    parser.add_argument("--layers", type=int, help="only the first ones: they hold as much at a time; default: all")
    parser.add_argument("--width", type=int, help="the hidden size of a model that is drawn, to save more time")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        os.environ["XDG_CACHE_HOME"] = str(args.folder)  # kernels found their place when they were imported
        print(json.dumps(measure(args, args.only, args.folder)))
        return
    print("| questions | file, MB | n best, MB | read, MiB | peak, MiB | activations | at the end, MiB | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for count in args.questions:
        r = apart(args, count)
        print(
            f"| {count:,} | {r['file']:.1f} | {r['n best']:.1f} | {r['read']} | {r['peak']} | "
            f"{r['activations']} | {r['end']} | {r['seconds']:.0f} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
