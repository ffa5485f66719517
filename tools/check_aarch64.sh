#!/bin/sh
# check_aarch64.sh PYTHON [CPU...]: the kernels compiled for aarch64, run by qemu's emulator against their NumPy twins.
# PYTHON has Numba, NumPy and pytest. CPU: names that qemu and `gemmafile kernels` share (default: one with the mixed
# dot product of bytes, one with the plain one, one with neither).
# An arm64 Python and NumPy come from Debian's archive and the package index into build/aarch64. Where qemu or Debian's
# tools are missing, the check is skipped and says so.
set -eu
python=$1
shift
here=$(pwd)
case $python in /*) ;; */*) python=$here/$python ;; esac
place=$here/build/aarch64

skip() {
    echo "check of aarch64 skipped: $1" >&2
    exit 0
}

qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) ||
    skip "there is no qemu-aarch64 (Debian, Ubuntu: apt install qemu-user-static)"

fetch_python() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip "an arm64 Python is fetched by apt-get only"
    mkdir -p "$place/lists/partial" "$place/archives/partial" "$place/packages" "$place/root"
    apt() {
        apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User="$(id -un)" \
            -o Dir::State::lists="$place/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$place" "$@"
    }
    apt update >&2 || skip "Debian's list of arm64 packages cannot be fetched"
    ( # `||` behind it switches -e off inside: what may fail is joined by &&
        cd "$place/packages"
        version=$(apt-cache -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$place/lists" \
            -o Dir::State::status=/dev/null -o Dir::Cache="$place" depends python3-minimal |
            sed -n 's/.*Depends: \(python3\.[0-9]*\)-minimal.*/\1/p' | head -1)
        apt download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libuuid1 libcrypt1 \
            "$version-minimal" "lib$version-minimal" "lib$version-stdlib" >&2 &&
        for package in *.deb; do dpkg-deb -x "$package" "$place/root" || exit 1; done &&
        "$python" -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: \
            --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
            --python-version "${version#python}" numpy >&2 &&
        "$python" -m zipfile -e numpy-*.whl "$place/site" &&
        echo "$version" >"$place/version"
    ) || skip "an arm64 Python cannot be fetched"
}

[ -e "$place/version" ] || fetch_python
version=$(cat "$place/version")
pure=$("$python" -c 'import os, pytest; print(os.path.dirname(os.path.dirname(pytest.__file__)))')

run() { # CPU words...: an arm64 Python whose CPU is CPU; pure Python packages are those of PYTHON
    QEMU_CPU=$1
    shift
    env QEMU_CPU="$QEMU_CPU" PYTHONHOME="$place/root/usr" PYTHONPATH="$place/site:$here/src:$here:$pure" \
        PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
        GEMMAFILE_KERNELS="$place/kernels" GEMMAFILE_CACHE="$place/cache" OPENBLAS_NUM_THREADS=1 \
        GEMMAFILE_FULL= "$qemu" -L "$place/root" "$place/root/usr/bin/$version" "$@"
}

for cpu in ${*:-max:neoverse-v1 neoverse-n1 cortex-a57:armv8-a}; do
    PYTHONPATH=$here/src "$python" -m gemmafile kernels build --cpu "${cpu#*:}" --out "$place/kernels" >&2
    echo "aarch64, ${cpu#*:}:"
    run "${cpu%:*}" -c 'import sys; from gemmafile.kernels import kept
first = next(iter(kept._carried_here()), None)
first and first.target == sys.argv[1] or sys.exit(f"expected code for {sys.argv[1]}, found {first}")' "${cpu#*:}"
    # Other plugins of PYTHON may need compiled modules. NumPy's own casts warn of other NaNs there than here.
    run "${cpu%:*}" -m pytest -q -p no:cacheprovider -p pytest_timeout -W ignore::RuntimeWarning \
        tests/kernels/test_products.py tests/kernels/test_replay.py tests/kernels/test_attention.py -k "twin or any_bytes or infinity or to_the_bit"
done
