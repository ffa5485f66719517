#!/bin/sh
# setup_venv.sh VENV LOCK: a virtual environment in folder VENV with the packages of LOCK and this project (editable).
# Writes VENV/ready as its last act. Everything it says goes to stderr.
set -eu
venv=$1 lock=$2
exec 1>&2

find_python() {
    for python in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
}

rm -f "$venv/ready"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    if [ -z "$python" ]; then
        echo "gemmafile needs Python 3.11 or newer with its venv module, and none was found."
        echo "Install it (Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=/path/to/python3.12"
        exit 1
    fi
    echo "making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
echo "installing $lock into $venv"
"$venv/bin/python" -m pip install --disable-pip-version-check -r "$lock"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
# pip makes bytecode of what it installs, but not of what it only points at; and a confined run may write none.
"$venv/bin/python" -m compileall -q src
touch "$venv/ready"
