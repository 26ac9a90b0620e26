# Sourced by the other scripts: makes .venv in the repository root where there is none,
# installs the given requirement file in the tested versions, and puts it on the path.
# PYTHON chooses the interpreter of a new one (default: python3).

make_environment() {
    local requirements=$1 stamp=.venv/installed-${1%.txt}
    if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then  # none, or half of one
        new_environment "${PYTHON:-python3}"
    elif [[ -n ${PYTHON:-} ]]; then
        echo "PYTHON is for a new .venv; the one that is there has" \
            "$(.venv/bin/python --version). Remove it to have another."
    fi
    if ! cat requirements*.txt constraints.txt | cmp -s - "$stamp"; then
        echo "installing $requirements into .venv (a few minutes the first time)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            -r "$requirements" -c constraints.txt
        cat requirements*.txt constraints.txt > "$stamp"
    fi
    export PATH=$PWD/.venv/bin:$PATH
}

new_environment() {
    local python=$1
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: '$python' is not Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 14))'; then
        echo "error: '$python' is Python 3.14 or newer, for which Box2D has no wheel yet;" \
            "set PYTHON=/path/to/python3.13" >&2
        exit 2
    fi
    rm -rf .venv
    "$python" -m venv .venv || {
        echo "error: no virtual environment could be made; install Python's venv module" >&2
        exit 2
    }
}
