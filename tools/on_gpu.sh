#!/usr/bin/env bash
# What only a card can tell, the most telling first:
#
#     tools/on_gpu.sh OUT [PART ...]
#
# Without names all parts run in the order in which they stand below, until SECONDS_IN_ALL (550) are over; what has not been
# done by then is told, to be given to another call. Each part has a limit of its own, and what it prints goes to
# OUT/all.log as it comes. One that fails or runs out of time does not keep the next from running. A line for each is
# printed, and the exit status is how many failed: what is skipped whole, for want of data or a package, has failed, too.
# Limits are guesses for an H200. PYTHON (python3) is the interpreter, with CuPy; minibert need not be installed.
# MINIBERT_SHARED holds data/glue/MRPC; PyTorch and transformers are compared with where they are there.
set -u

PARTS="doctor cupy dropout model attention base epochs mrpc kernels windows operations large
    memory-base memory-large inference memcheck racecheck synccheck"

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS left=$((until - SECONDS)) start status last
    shift 2
    [ "$left" -ge 20 ] || { rest+=("$name"); return; }
    echo "=== $name" >> "$log"
    start=$(stat -c %s "$log")
    # An interrupt, after which pytest still says what it has found.
    timeout --signal=INT --kill-after=5 $((limit < left - 5 ? limit : left - 5)) "$@" >> "$log" 2>&1
    status=$?
    last=$(tail -c +$((start + 1)) "$log" | grep -v '^$' | tail -n 1)
    [ $status = 0 ] && case $last in *passed*) ;; *skipped*) status=skipped ;; esac
    if [ $status != 0 ] && [ "$limit" -gt $((left - 5)) ] && [ $((until - SECONDS)) -lt 10 ]; then
        rest+=("$name")  # it was the time of all that ended it
        return
    fi
    printf '%-12s %s in %d s: %s\n' "$name" "$([ $status = 0 ] && echo passed || echo "FAILED ($status)")" \
        $((SECONDS - began)) "$last"
    [ $status = 0 ] || failed=$((failed + 1))
}

on_card() {  # NAME SECONDS WHAT...: of pytest; what libraries have come to warn of is no failure of ours
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m pytest -q -W default -m gpu "$@"
}

jobs=benches/test_gpu_training.py
parallel=(-n 8 --dist loadfile)  # kernels' tests compile most of the time; one file's faults are not another's

run() {
    local name=$1
    case $name in
        doctor) part doctor 30 "$python" -c 'from minibert.cli import main; main()' doctor ;;
        cupy) part cupy 30 "$python" -m pytest -q -W default tests/test_gpu_device.py -k real_cupy ;;  # names, symbols
        dropout) on_card dropout 60 tests/kernels/test_dropout.py ;;  # the modules' stream_base
        model) on_card model 150 tests/test_gpu.py ;;                 # and recordings
        attention) on_card attention 90 "${parallel[@]}" tests/kernels -k attention ;;
        kernels) on_card kernels 200 "${parallel[@]}" tests/kernels -k "not attention" ;;
        epochs) on_card epochs 60 -s "$jobs::test_three_epochs_of_mrpc_take_ten_seconds" ;;
        mrpc) on_card mrpc 180 -s "$jobs::test_a_step_of_mrpc_takes_half_of_pytorch_s_time" ;;
        base | large) on_card "$name" 180 -s "$jobs::test_full_windows[$name]" ;;
        windows) on_card windows 120 -s "benches/test_kernels.py::test_full_windows_reach_what_is_aimed_at" ;;
        operations) on_card operations 120 -k "base and bf16 and gpu and not full_windows" benches/test_kernels.py \
            --benchmark-json "$out/operations.json" --benchmark-columns=median,rounds ;;
        memory-*) on_card "$name" 150 -s "$jobs::test_the_chapter_s_table_in_12_gigabytes[${name#memory-}]" ;;
        inference) part inference 90 "$python" benches/compare_inference.py --device gpu --models random:base \
            --sides minibert-bf16 torch-bf16 torch-compile-bf16 --data-dir "${MINIBERT_SHARED:-none}/data/glue" ;;
        # With memory of its own for each array: in a pool's, what is written beside one is another's. cuBLAS and what
        # is played here are left out, and of attention all but the tensor cores' kernels.
        memcheck | racecheck | synccheck)
            MINIBERT_UNPOOLED=1 part "$name" 150 compute-sanitizer --tool "$name" --error-exitcode 1 \
                "$python" -m pytest -q -x -W default -m gpu tests/kernels/test_attention_gpu.py \
                tests/kernels/test_embedding.py tests/kernels/test_dropout_add_layer_norm.py ;;
    esac
}

out=${1:?usage: tools/on_gpu.sh OUT [PART ...], of $PARTS}
shift
python=$(realpath -s "$(command -v "${PYTHON:-python3}")") || exit 1  # of the environment, not what it links to
[ -z "${MINIBERT_SHARED:-}" ] || export MINIBERT_SHARED=$(realpath -s "$MINIBERT_SHARED")
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "$0")/.." || exit 1
failed=0 rest=() log=$out/all.log until=$((SECONDS + ${SECONDS_IN_ALL:-550})) link=$(mktemp -d)
trap 'rm -rf "$link"' EXIT
[ -d "${MINIBERT_SHARED:-none}/data/glue/MRPC" ] || echo "no MINIBERT_SHARED with data/glue/MRPC: epochs, mrpc and inference fail"
# Found without being installed, but not the checkout itself: transformers would take its kernels/ for a package.
ln -s "$PWD/minibert" "$link/minibert"
export PYTHONPATH=$link${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=16
(cd / && "$python" -c 'from minibert import training; from minibert.kernels import devices; devices.open("gpu")') 2> "$out/start.log" || {
    tail -n 1 "$out/start.log" >&2
    exit 1
}
[ $# = 0 ] && set -- $PARTS
for name; do case " $(echo $PARTS) " in *" $name "*) ;; *) echo "$name: no such part: $PARTS" >&2; exit 1 ;; esac; done
for name; do run "$name"; done
[ ${#rest[@]} = 0 ] || echo "not done: ${rest[*]}"
exit $failed
