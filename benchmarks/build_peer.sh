#!/bin/sh
# Builds the peer: llama.cpp for this very processor, in a virtual environment of its own.
#
#   sh benchmarks/build_peer.sh FOLDER [PYTHON]
#
# On some virtual machines a processor announces AMX, but the instruction that sets its tiles up faults, and llama.cpp,
# which uses AMX for quantized weights where it was compiled for it, ends with it. So the build is tried on a quantized
# model, and made again without AMX where it fails; the benchmark says which build it measured.
set -eu
folder=$1
python=${2:-python3}
version=0.3.36
"$python" -m venv "$folder"

build() {
  CMAKE_ARGS="$1" "$folder/bin/python" -m pip install --quiet --no-cache-dir --force-reinstall \
    --no-binary llama-cpp-python "llama-cpp-python==$version"
  echo "$1" >"$folder/build-flags"
}

build "-DGGML_NATIVE=ON"
root=$(cd "$(dirname "$0")" && pwd)
model=$("$root/../.venv/bin/python" -c 'from teachllama import hub; print(hub.find("smollm2-135m"))')
if ! echo '{"task": "decode", "n": 2, "n_past": 4}' | "$folder/bin/python" "$root/worker.py" llama.cpp "$model" 2 >/dev/null 2>&1; then
  echo "llama.cpp with AMX does not run on this machine: building it again without"
  no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  build "-DGGML_NATIVE=ON -DCMAKE_C_FLAGS='$no_amx' -DCMAKE_CXX_FLAGS='$no_amx'"
fi
