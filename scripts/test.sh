#!/usr/bin/env bash
# Make the environment where there is none, and run the checks and the tests.
# Arguments go to pytest: bash scripts/test.sh -k agent
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment requirements-dev.txt

ruff check .
ruff format --check .
# Two tests at a time, each computing on one thread: most of them wait for imports.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal "$@"
