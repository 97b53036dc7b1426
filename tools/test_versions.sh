#!/usr/bin/env bash
# Runs the tests that touch torch most with another Python and other versions of the libraries, in an
# environment that is deleted at the end (about 6 GB, nearly all of it torch).
#
# PYTHON names the interpreter. VERSIONS=oldest takes the oldest versions that pyproject.toml admits,
# each at its last patch release, VERSIONS=newest the newest. Words are given to pytest in place of
# the folders below.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin

versions=()
if [ "${VERSIONS:-newest}" = oldest ]; then
	# "name>=1.2" becomes name==1.2.*, of the dependencies and of the extras that tests use; of the
	# tools that run them any version will do.
	tools='pytest|hypothesis|jsonschema|jaxtyping|beartype|ipykernel|nbclient|import-linter|distributed'
	sed -nE 's/^ *"([A-Za-z0-9_-]+)>=([0-9.]+)",?$/\1==\2.*/p' pyproject.toml |
		grep -vE "^($tools)" | sort -u >"$folder/oldest.txt"
	versions=(-c "$folder/oldest.txt")
fi
"$bin/python" -m pip --quiet install "${versions[@]}" -e '.[zuko,nflows,onnx,prune]' \
	pytest hypothesis jaxtyping beartype jsonschema
"$bin/python" --version
"$bin/python" -m pip freeze | grep -iE '^(torch|torchvision|FrEIA|normflows|numpy|scipy)=='

tests=("$@")
if [ $# = 0 ]; then
	tests=(tests/training tests/teachers tests/exporting tests/flows tests/job/test_job_run.py)
fi
# Warnings are no errors here: what libraries say of one another, and of a Python, is theirs.
OMP_NUM_THREADS=1 "$bin/python" -m pytest -q -W default -m "not slow and not faults" "${tests[@]}"
