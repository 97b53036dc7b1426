#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and runs the demo in small from there,
# with nothing of the repository in reach: a file that the wheel forgot is missed here.
#
# LIBRARIES=FOLDER takes what the wheel depends on from an environment's site-packages, which spares
# the download of torch. Without it pip installs everything that the wheel asks for.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
libraries=${LIBRARIES:+$(cd "$LIBRARIES" && pwd)}

# From a copy of what git knows: what setuptools remembers in *.egg-info would hide what is missing.
mkdir "$folder/source"
git ls-files -z | tar --null --files-from - -c | tar -x -C "$folder/source"
rm -rf dist
"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin
own=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$bin/python" -m pip --quiet wheel --no-deps --wheel-dir dist "$folder/source"
if [ -n "$libraries" ]; then
	echo "$libraries" >"$own/libraries.pth"
fi
"$bin/python" -m pip --quiet install dist/*.whl

cd "$folder"
"$bin/freiakd" --version
"$bin/freiakd" train-teacher digits --epochs 3 --out lenet5.pt
"$bin/freiakd" distill --teacher lenet5.pt --preset quick --student 3 --eval-data digits --out demo \
	--set-size 512 --set student.steps=20
test -s demo/report.html -a -s demo/report.json
"$bin/python" - "$own" <<'END'
import sys
import freia_kd, torch
student = freia_kd.load_student("demo/student.safetensors")
assert student(torch.rand(2, 1, 32, 32)).shape == (2, 10)
assert freia_kd.__file__.startswith(sys.argv[1]), freia_kd.__file__
print("The wheel works in an empty environment.")
END
