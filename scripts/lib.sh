# Set-up shared by quickstart and test: find Python, make .venv, install hepx with plain pip. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# install [EXTRAS]: hepx in editable form, with extras such as "[dev]"; skipped when nothing changed since the last time
install() {
    local extras=${1:-} python stamp wanted
    if ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(find_python) || fail "hepx needs Python 3.11 or newer with venv; found: $("${PYTHON:-python3}" --version 2>&1 || true)." \
            "Install a newer Python, or name one: PYTHON=/path/to/python3.12 $0"
        say "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv" || fail "could not make $venv; on Debian or Ubuntu install the package python3-venv."
    fi
    stamp=$venv/.installed$extras
    wanted=$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | cksum)
    if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
        say "packages are installed already"
        return
    fi
    say "installing hepx$extras into $venv (a few minutes the first time)"
    # torch first and alone: its pinned build must be there before another package asks for any torch
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/scripts/constraints.txt" torch
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/scripts/constraints.txt" --editable "$root$extras"
    printf '%s' "$wanted" > "$stamp"
}
