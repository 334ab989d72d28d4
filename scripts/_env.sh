# Shared by the scripts: where the repository is, and `prepare`, which makes .venv and installs into it what is asked for.
# Sourced, never run. Everything is done only when needed: a stamp in .venv remembers what it was made from.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
CONSTRAINTS="$ROOT/scripts/constraints.txt"
PYTHON="$VENV/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '>> %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The interpreter to make .venv with: 3.10 or newer.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.10 or newer is needed (Debian: apt-get install python3 python3-venv)"
}

make_venv() {
  if [ -e "$VENV" ]; then
    "$PYTHON" -c 'import pip' 2>/dev/null && return
    [ -e "$VENV/pyvenv.cfg" ] || [ -z "$(ls -A "$VENV")" ] || fail "$VENV is not a virtual environment; move it away"
    say "$VENV does not work (was its Python removed?); making it again"
    rm -rf "$VENV"
  fi
  local python
  python="$(find_python)"
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    fail "$python cannot make virtual environments; on Debian: apt-get install python3-venv"
  fi
  say "making .venv with $("$python" --version)"
  "$python" -m venv "$VENV"
}

# pip install "$@": one line per package as it goes; all that pip says is in .venv/install.log.
pip_try() {
  { printf '\n$ pip install %s\n' "$*"
    PYTHONUNBUFFERED=1 "$PYTHON" -m pip install --no-input --progress-bar off -c "$CONSTRAINTS" "$@" 2>&1
  } | tee -a "$VENV/install.log" | sed -u -n -E \
      -e 's/^ *(Downloading|Using cached) ([^ ]*\/)?([^ -]+-[^ -]+)(-[^ ]+)?( \(.*\))?.*/     \3\5/p' \
      -e 's/^Installing collected packages:.*/     unpacking/p' >&2
}

pip_install() {
  if pip_try "$@"; then return; fi
  tail -n 15 "$VENV/install.log" >&2
  fail "pip could not install $* (all of its output: $VENV/install.log)"
}

# The plain wheel on PyPI brings gigabytes of CUDA libraries. Without a GPU the CPU build is taken: from where pip looks
# anyway (a mirror, a folder of wheels); else, when that has none, the plain one.
install_torch() {
  if "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then return; fi
  local version
  version="$(sed -n 's/^torch==//p' "$CONSTRAINTS")"
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    say "installing torch $version with CUDA: there is a GPU"
    pip_install "torch==$version"
    return
  fi
  say "installing torch $version, CPU build"
  if pip_try "torch==$version+cpu"; then return; fi
  say "no CPU build of torch $version was found; taking the plain one, which is large"
  pip_install "torch==$version"
}

# prepare NAME EXTRAS [REQUIREMENTS_FILE...]: the project with its extras ("" for none) and requirement files.
# NAME tells apart what was asked for; a change of the project's metadata, of a file or of Python installs again.
prepare() {
  local name="$1" extras="$2" file stamp made
  shift 2
  make_venv
  stamp="$VENV/.made-for-$name"
  made="$({ "$PYTHON" --version; cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" "$CONSTRAINTS" "$@"; } | sha256sum)"
  if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$made" ]; then return; fi
  local wanted=(-e "$ROOT${extras:+[$extras]}")
  for file in "$@"; do
    wanted+=(-r "$file")
    if grep -qE '^torch\b' "$file"; then install_torch; fi
  done
  say "installing stageline${extras:+[$extras]}${*:+ and} ${*#"$ROOT"/}"
  pip_install "${wanted[@]}"
  printf '%s' "$made" >"$stamp"
}
