#!/usr/bin/env bash
# What only a card can tell, the most telling first:
#
#     tools/on_gpu.sh OUT [tests] [benches] [sanitizer]
#
# Each part has a limit of its own and a log in OUT; one that fails or runs out of time does not keep the next from running.
# A line for each is printed, and the exit status is how many failed. Times are guesses for an H200: all three parts
# together some twenty minutes. PYTHON is the interpreter, in whose environment minibert is installed (where there is no
# network: pip install --no-deps --no-build-isolation -e .); MINIBERT_SHARED, where set, holds data/glue/MRPC.
set -u

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
    printf '%-10s %s in %d s: %s\n' "$name" "$([ $status = 0 ] && echo passed || echo "FAILED ($status)")" \
        $((SECONDS - began)) "$(grep -v '^$' "$out/$name.log" | tail -n 1)"
    failed=$((failed + (status != 0)))
}

tests() {
    part doctor 60 "$python" -c 'from minibert.cli import main; main()' doctor
    part dropout 90 "$python" -m pytest -q -m gpu tests/kernels/test_dropout.py      # the modules' stream_base
    part model 180 "$python" -m pytest -q -m gpu tests/test_gpu.py                    # and recordings
    part kernels 300 "$python" -m pytest -q -m gpu -n 4 tests/kernels                # they compile most of the time
}

benches() {
    part operations 240 "$python" -m pytest -q -m gpu benches/test_kernels.py --benchmark-json "$out/operations.json" \
        --benchmark-columns=median,rounds
    part jobs 480 "$python" -m pytest -q -s -m gpu benches/test_gpu_training.py      # beside PyTorch, in 12 GB, MRPC
    if [ -n "${MINIBERT_SHARED:-}" ]; then
        part inference 120 "$python" benches/compare_inference.py --device gpu \
            --data-dir "$MINIBERT_SHARED/data/glue" --models random:base
    fi
}

sanitizer() {
    for tool in memcheck racecheck; do
        part $tool 300 compute-sanitizer --tool $tool --error-exitcode 1 "$python" -m pytest -q -m gpu tests/kernels
    done
}

out=${1:?usage: tools/on_gpu.sh OUT [tests] [benches] [sanitizer]}
shift
python=$(realpath -s "$(command -v "${PYTHON:-python}")") || exit 1  # of the environment, not what it links to
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "$0")/.." || exit 1
failed=0
(cd / && "$python" -c 'from minibert import training; from minibert.kernels import devices; devices.open("gpu")') 2> "$out/start.log" || {
    tail -n 1 "$out/start.log" >&2
    exit 1
}
[ $# = 0 ] && set -- tests benches sanitizer
for name; do
    case $name in
        tests | benches | sanitizer) "$name" ;;
        *) echo "$name: no such part: tests, benches or sanitizer" >&2; exit 1 ;;
    esac
done
exit $failed
