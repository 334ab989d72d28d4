# Shared by the scripts: where the repository is, and `prepare`, which makes .venv and installs into it what is asked for.
# Sourced, never run. Everything is done only when needed: a stamp in .venv remembers what it was made from.
# A first option `--python VERSION` (3.13, or 3.13.0) means that Python, and an environment of its own: .venv-VERSION.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CONSTRAINTS="$ROOT/scripts/constraints.txt"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Where it is set, as images of containers do, every process that a test starts compiles all that it imports anew: 0.7 of
# the 2.3 s of CPU of each deployment.
unset PYTHONDONTWRITEBYTECODE

say() { printf '>> %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

VERSION=""  # "" is whichever Python find_python meets first
case "${1:-}" in
  --python) VERSION="${2:-}"; shift; [ $# -eq 0 ] || shift ;;
  --python=*) VERSION="${1#*=}"; shift ;;
  *) VERSION=any ;;
esac
[[ "$VERSION" =~ ^(any|3(\.[0-9]+)+)$ ]] || fail "--python: expected a version such as 3.13, got \"$VERSION\""
VERSION="${VERSION#any}"

VENV="$ROOT/.venv${VERSION:+-$VERSION}"
PYTHON="$VENV/bin/python"

# The interpreter of VERSION: on the PATH, or kept by pyenv. Fails in silence when there is none.
# Each is asked what it is: pyenv puts a python3.13 on the PATH that only says that it is not chosen.
find_version() {
  local version="$1" minor candidate
  minor="$(printf '%s' "$version" | cut -d. -f1,2)"
  for candidate in "python$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"{,.*}/bin/python3 python3; do
    command -v "$candidate" >/dev/null || continue
    case "$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null)." in
      "$version".*) command -v "$candidate"; return ;;
    esac
  done
  return 1
}

# The interpreter to make an environment with: of VERSION, or else 3.10 or newer.
find_python() {
  local candidate
  if [ -n "$VERSION" ]; then
    find_version "$VERSION" && return
    fail "there is no Python $VERSION: neither on the PATH as python$(cut -d. -f1,2 <<<"$VERSION")," \
      "nor kept by pyenv in ${PYENV_ROOT:-$HOME/.pyenv}/versions"
  fi
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
  say "making ${VENV##*/} with $("$python" --version)"
  "$python" -m venv "$VENV"
}

# A uv that installs into $VENV: what takes pip minutes takes it less than one, and what it has unpacked once is only linked
# into other environments. It is fetched by pip, and knows pip's settings by what is told here: a mirror, a folder of
# wheels. Where it cannot be had, pip does it all.
find_uv() {
  local settings pair value
  UV="$ROOT/.venv/bin/uv"
  [ -x "$UV" ] || UV="$VENV/bin/uv"
  [ -x "$UV" ] || "$PYTHON" -m pip install -q --no-input -c "$CONSTRAINTS" uv >>"$VENV/install.log" 2>&1 || return
  settings="$("$PYTHON" -m pip config list)" || return
  for pair in index-url:UV_DEFAULT_INDEX extra-index-url:UV_INDEX find-links:UV_FIND_LINKS cert:SSL_CERT_FILE; do
    value="$(sed -n "s/^[^=]*[.]${pair%%:*}='\(.*\)'$/\1/p" <<<"$settings" | sed '1!d;s/\\n/ /g')"
    [ -z "$value" ] || export "${pair#*:}=$value"
  done
  export UV_INDEX_STRATEGY=unsafe-best-match # as pip: the best of all places, not the first that has any
}

# "pip install" by either: one line per package as it goes; all that is said is in .venv/install.log.
pip_try() {
  { if find_uv; then
      printf '\n$ uv pip install %s\n' "$*"
      "$UV" pip install --python "$PYTHON" --no-progress -c "$CONSTRAINTS" "$@" 2>&1 && exit
    fi
    printf '\n$ pip install %s\n' "$*"
    PYTHONUNBUFFERED=1 "$PYTHON" -m pip install --no-input --progress-bar off -c "$CONSTRAINTS" "$@" 2>&1
  } | tee -a "$VENV/install.log" | sed -u -n -E \
      -e 's/^Downloading ([^ ]+ \([^)]*\))$/     \1/p;t' \
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
  else
    say "installing torch $version, CPU build"
    if ! pip_try "torch==$version+cpu"; then
      say "no CPU build of torch $version was found; taking the plain one, which is large"
      pip_install "torch==$version"
    fi
  fi
  "$PYTHON" -c 'import torch' 2>>"$VENV/install.log" || true # uv compiles nothing: here once, not in the first of each worker
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
