#!/bin/sh
# Checks binder/ as repo2docker would use it, in a clean virtual environment and with a home folder of its own: installs
# binder/requirements.txt, runs binder/postBuild, then, cut off from the network, runs every notebook beside a JupyterLab
# and watches the memory of both.
#
#   sh binder/check.sh            # what is committed (HEAD)
#   sh binder/check.sh --worktree # the files as they are now
#
# PYTHON names the interpreter (default python3). Needs the network, or pip settings that find packages without it.
set -eu

limit_mb=900  # mybinder.org guarantees 1 GB
root=$(cd "$(dirname "$0")/.." && pwd)
python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

echo "== a clean checkout"
mkdir "$work/repo" "$work/home"
cd "$root"
if [ "${1:-}" = --worktree ]; then
  git ls-files -z --cached --others --exclude-standard >"$work/files"
  tar -c -f - --null -T "$work/files" 2>/dev/null | tar -x -f - -C "$work/repo" # what was deleted is left out
else
  git archive HEAD | tar -x -f - -C "$work/repo"
fi
cd "$work/repo"

# A home of its own: nothing of this user's may help. Their pip settings (mirrors, proxies) still must.
for file in "$HOME/.config/pip/pip.conf" "$HOME/Library/Application Support/pip/pip.conf" "$HOME/.pip/pip.conf"; do
  [ -f "$file" ] && export PIP_CONFIG_FILE="${PIP_CONFIG_FILE:-$file}"
done
unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR PYTHONPATH VIRTUAL_ENV
unset TEACHLLAMA_CACHE TEACHLLAMA_MODEL
export HOME="$work/home"

echo "== pip install -r binder/requirements.txt"
"$python" -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH"
python -m pip install --quiet --disable-pip-version-check -r binder/requirements.txt

echo "== binder/postBuild"
binder/postBuild

echo "== each notebook beside JupyterLab, offline, under $limit_mb MB"
# Proxies that lead nowhere: whoever asks for the network now is refused at once.
export http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9
export PIP_NO_INDEX=1 HF_HUB_OFFLINE=1
# The limit is on memory that is in use, which no ulimit bounds: `ulimit -v` bounds reserved memory, and notebook 04
# shows that a large reserve costs nothing. So look at the processes ten times a second.
python binder/peak.py "$limit_mb"
echo "binder/ is sound"
