"""How fast checkpoints open: BERT-Large's shape in each format, from a warm cache, every checksum on.

    python benches/checkpoints.py [--shape large] [--rounds 5]

What was read is compared with what was written, to the bit, before anything is timed. GB/s is of tensor data.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minibert import checkpoint
from minibert.checkpoint import conversion

# Peak memory must be that of one reading alone: a process of its own, whose mapped pages are the file's, not ours.
ALONE = """
import sys
from pathlib import Path
from minibert import checkpoint
total = sum(array.nbytes for array in checkpoint.load(Path(sys.argv[1])).arrays.values())
lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(total, *(int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="large")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "hf"
        made = checkpoint.load(f"{checkpoint.RANDOM}{options.shape}")
        checkpoint.save(first, made.config, made.arrays)
        places = {"hf": first}
        for form in ("tensorflow", "torch"):
            places[form] = Path(folder) / form
            began = time.perf_counter()
            conversion.convert(first, places[form], form)
            print(f"hf to {form}: {time.perf_counter() - began:.2f} s")
        for place in places.values():
            found = checkpoint.load(place).arrays
            assert all(np.array_equal(found[name], array) for name, array in made.arrays.items()), place
        seconds: dict[str, list[float]] = {form: [] for form in places}
        for _ in range(options.rounds):
            for form, place in places.items():
                began = time.perf_counter()
                found = checkpoint.load(place).arrays
                seconds[form].append(time.perf_counter() - began)
                del found
        print(f"\n{'format':<12}{'seconds':>9}{'GB/s':>8}{'peak RSS':>12}{'of it anonymous':>18}")
        for form, place in places.items():
            done = subprocess.run([sys.executable, "-c", ALONE, place], capture_output=True, text=True, check=True)
            total, peak, anonymous = map(int, done.stdout.split())
            median = statistics.median(seconds[form])
            speed = total / median / 1e9
            print(f"{form:<12}{median:>9.2f}{speed:>8.2f}{peak / 1e6:>9,.0f} MB{anonymous / 1e6:>15,.0f} MB")
    print(f"\npeak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()
