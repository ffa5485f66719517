#!/bin/sh
# build_wheel.sh PYTHON OUT: a wheel of this project in OUT that carries machine code for the CPUs most people have, so
# that it runs without Numba. PYTHON has Numba and setuptools. The code is a build product: nothing lands in src.
set -eu
python=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
copy=build/wheel
rm -rf "$copy"
mkdir -p "$copy"
cp -R src pyproject.toml README.md LICENSE "$copy"
find "$copy" -name __pycache__ -type d -prune -exec rm -rf {} +
PYTHONPATH=$copy/src "$python" -m gemmafile kernels build --out "$copy/src/gemmafile/kernels/carried" >&2
"$python" -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation --wheel-dir "$out" "$copy"
ls -l "$out"/gemmafile-*.whl
