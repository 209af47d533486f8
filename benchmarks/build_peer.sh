#!/bin/sh
# Builds the peer: llama.cpp for this very processor, in a virtual environment of its own.
#
#   sh benchmarks/build_peer.sh FOLDER [PYTHON [exact-gelu]]
#
# With exact-gelu, llama.cpp computes GELU instead of looking it up in a table of float16 numbers (docs/measured.md).
#
# On some virtual machines a processor announces AMX, but the instruction that sets its tiles up faults, and llama.cpp,
# which uses AMX for quantized weights where it was compiled for it, ends with it. So the build is tried on a quantized
# model, and made again without AMX where it fails; the benchmark says which build it measured.
set -eu
folder=$1
python=${2:-python3}
version=0.3.36
"$python" -m venv "$folder"
wanted="llama-cpp-python==$version"
if [ "${3:-}" = exact-gelu ]; then
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  "$folder/bin/python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$source" "$wanted"
  tar -xzf "$source"/llama_cpp_python-$version.tar.gz -C "$source"
  wanted="$source/llama_cpp_python-$version"
  header="$wanted/vendor/llama.cpp/ggml/src/ggml-cpu/vec.h"
  grep -q '^#define GGML_GELU_FP16' "$header"  # else the line moved, and this would build what it should not
  sed -i.stock 's|^#define GGML_GELU_FP16|// &|' "$header"
fi

build() {
  CMAKE_ARGS="$1" "$folder/bin/python" -m pip install --quiet --no-cache-dir --force-reinstall \
    --no-binary llama-cpp-python "$wanted"
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
