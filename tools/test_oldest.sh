#!/usr/bin/env bash
# Runs tests with the oldest versions that pyproject.toml admits, each at its last patch release, in
# an environment that is deleted at the end (about 6 GB): what a Python and the torch of its day need.
#
# PYTHON names the interpreter; words are given to pytest, by default what touches torch most.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin

# "name>=1.2" becomes name==1.2.*, of the dependencies and of the extras that tests use; of the tools
# that run them any version will do.
sed -nE 's/^ *"([A-Za-z0-9_-]+)>=([0-9.]+)",?$/\1==\2.*/p' pyproject.toml |
	grep -vE '^(pytest|hypothesis|jsonschema|jaxtyping|beartype|ipykernel|nbclient|import-linter|distributed)' |
	sort -u >"$folder/oldest.txt"
"$bin/python" -m pip --quiet install -c "$folder/oldest.txt" -e '.[zuko,nflows,onnx,prune]' \
	pytest hypothesis jaxtyping beartype jsonschema
"$bin/python" -m pip freeze | grep -iE '^(torch|torchvision|FrEIA|normflows|numpy|scipy)=='
"$bin/python" --version
tests=("$@")
if [ $# = 0 ]; then
	tests=(tests/flows tests/teachers tests/training tests/exporting tests/job tests/synthesizers)
fi
# What old libraries warn of in one another is theirs.
OMP_NUM_THREADS=1 "$bin/python" -m pytest -q -W default \
	-m "not slow and not faults" "${tests[@]}"
