#!/bin/sh
# Runs a command of this project on arm64, emulated by QEMU: do the kernels compute there what they compute here?
#
#   sh tools/on_arm64.sh FOLDER python3 -m pytest -q tests/test_compiled.py
#
# For Debian, as root, with the packages debootstrap and qemu-user-static, where `make` has made .venv. The first time,
# FOLDER gets a small Debian for arm64, with the project's packages; this takes some minutes. The project is seen there
# as /work, and the models of this machine's cache are there, too. Emulated code is tens of times slower: times say nothing.
set -eu
folder=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
models=${XDG_CACHE_HOME:-$HOME/.cache}/teachllama/models
if [ ! -e "$folder/ready" ]; then
  debootstrap --arch=arm64 --variant=minbase --include=python3 bookworm "$folder"
  needed=$("$root/.venv/bin/python" -c "
import tomllib
project = tomllib.load(open('$root/pyproject.toml', 'rb'))['project']
print(*(name.replace(' ', '') for name in project['dependencies']))")
  # shellcheck disable=SC2086  (several words)
  "$root/.venv/bin/python" -m pip install --quiet --target "$folder/opt/packages" --python-version 3.11 \
    --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
    $needed pytest pytest-xdist hypothesis
  mkdir -p "$folder/work" "$folder/root/.cache/teachllama/models"
  touch "$folder/ready"
fi
mkdir -p "$models"
# Mounts of a namespace of its own end with it.
exec unshare --mount sh -c '
  folder=$1 root=$2 models=$3
  shift 3
  mount --bind "$root" "$folder/work"
  mount --bind "$models" "$folder/root/.cache/teachllama/models"
  mount --bind /proc "$folder/proc"
  mount --bind /dev "$folder/dev"
  exec chroot "$folder" /usr/bin/env -i -C /work HOME=/root PATH=/usr/bin:/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/work:/opt/packages "$@"
' sh "$folder" "$root" "$models" "$@"
