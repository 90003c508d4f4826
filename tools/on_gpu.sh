#!/usr/bin/env bash
# What only a card can tell, the most telling first:
#
#     tools/on_gpu.sh OUT [tests] [speed] [compare] [memory] [sanitizer]
#
# Each part has a limit of its own and what it printed in OUT/all.log; one that fails or runs out of time does not keep the
# next from running. A line for each is printed, and the exit status is how many failed: what is skipped whole, for
# want of data or a package, has failed, too. Times are guesses for an H200: each of the five some five to eight minutes. PYTHON is the
# interpreter; minibert need not be installed. MINIBERT_SHARED holds data/glue/MRPC.
set -u

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS status last
    shift 2
    # An interrupt, after which pytest still says what it has found.
    timeout --signal=INT --kill-after=10 "$limit" "$@" > "$logs/$name" 2>&1
    status=$?
    last=$(grep -v '^$' "$logs/$name" | tail -n 1)
    case $last in *passed*) ;; *skipped*) status=skipped ;; esac
    { echo "=== $name"; cat "$logs/$name"; } >> "$out/all.log"
    printf '%-10s %s in %d s: %s\n' "$name" "$([ $status = 0 ] && echo passed || echo "FAILED ($status)")" \
        $((SECONDS - began)) "$last"
    [ $status = 0 ] || failed=$((failed + 1))
}

on_card() {  # NAME SECONDS WHAT...: of pytest; what libraries have come to warn of is no failure of ours
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m pytest -q -W default -m gpu "$@"
}

tests() {
    part doctor 30 "$python" -c 'from minibert.cli import main; main()' doctor
    part cupy 30 "$python" -m pytest -q -W default tests/test_gpu_device.py -k real_cupy  # its names and symbols
    on_card dropout 60 tests/kernels/test_dropout.py      # the modules' stream_base
    on_card model 180 tests/test_gpu.py                    # and recordings
    on_card kernels 300 -n 4 tests/kernels                # they compile most of the time
}

jobs=benches/test_gpu_training.py

speed() {
    on_card epochs 60 -s "$jobs::test_three_epochs_of_mrpc_take_ten_seconds"
    on_card windows 120 -s "benches/test_kernels.py::test_full_windows_reach_what_is_aimed_at"
    on_card base 240 -s "$jobs::test_full_windows[base]"
}

compare() {
    on_card mrpc 240 -s "$jobs::test_a_step_of_mrpc_takes_half_of_pytorch_s_time"
    on_card large 300 -s "$jobs::test_full_windows[large]"
}

memory() {
    for shape in base large; do
        on_card memory-$shape 150 -s "$jobs::test_the_chapter_s_table_in_12_gigabytes[$shape]"
    done
    on_card operations 150 -k "not full_windows" benches/test_kernels.py --benchmark-json "$out/operations.json" \
        --benchmark-columns=median,rounds
    if [ -n "${MINIBERT_SHARED:-}" ]; then
        part inference 90 "$python" benches/compare_inference.py --device gpu \
            --sides minibert-bf16 torch-bf16 torch-compile-bf16 --data-dir "$MINIBERT_SHARED/data/glue" --models random:base
    fi
}

sanitizer() {  # with memory of its own for each array: in a pool's, what is written beside one is another's
    for tool in memcheck racecheck; do
        MINIBERT_UNPOOLED=1 part $tool 300 compute-sanitizer --tool $tool --error-exitcode 1 \
            "$python" -m pytest -q -W default -m gpu tests/kernels
    done
}

out=${1:?usage: tools/on_gpu.sh OUT [tests] [speed] [compare] [memory] [sanitizer]}
shift
python=$(realpath -s "$(command -v "${PYTHON:-python}")") || exit 1  # of the environment, not what it links to
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "$0")/.." || exit 1
failed=0 logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
# Found without being installed, but not the checkout itself: transformers would take its kernels/ for a package.
ln -s "$PWD/minibert" "$logs/minibert"
export PYTHONPATH=$logs PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=16
(cd / && "$python" -c 'from minibert import training; from minibert.kernels import devices; devices.open("gpu")') 2> "$out/start.log" || {
    tail -n 1 "$out/start.log" >&2
    exit 1
}
[ $# = 0 ] && set -- tests speed compare memory sanitizer
for name; do
    case $name in
        tests | speed | compare | memory | sanitizer) "$name" ;;
        *) echo "$name: no such part: tests, speed, compare, memory or sanitizer" >&2; exit 1 ;;
    esac
done
exit $failed
