#!/bin/sh
# check_packed.sh PYTHON MODEL: the model packed with its Python and machine code answers from a folder of its own, with an
# empty environment, as the installed engine does; as root, and where there is a static busybox, also in a chroot that
# holds nothing else. Where Debian's Python cannot be fetched, this machine's own is packed.
set -eu
python=$1 model=$2
case $python in /*) ;; */*) python=$(pwd)/$python ;; esac
case $model in /*) ;; *) model=$(pwd)/$model ;; esac
place=$(pwd)/build/packed
rm -rf "$place"
mkdir -p "$place/run/home" "$place/root/bin" "$place/root/tmp"
file=$place/run/model.llamafile
set -- -p "Once upon a time" -n 8 --temp 0
"$python" -m gemmafile pack "$model" -o "$file" --accept-license --quiet
expected=$("$python" -m gemmafile -m "$model" -no-cnv "$@" 2>/dev/null)

same() { # WHERE ANSWER
    [ "$2" = "$expected" ] || { echo "a packed file, $1: $2" >&2; exit 1; }
    echo "a packed file, $1: right"
}

cd "$place/run"
same "first start" "$(env -i PATH=/usr/bin:/bin HOME="$place/run/home" ./model.llamafile "$@")"
same "second start" "$(env -i PATH=/usr/bin:/bin HOME="$place/run/home" ./model.llamafile "$@")"
same "no environment" "$(env -i TMPDIR="$place/run/home" /bin/sh ./model.llamafile "$@")"
"$python" -m gemmafile verify --quiet "$file"
./model.llamafile --extract "$place/out" --quiet >/dev/null
cmp "$place"/out/*.gguf "$model"
busybox=$(command -v busybox || :)
if [ "$(id -u)" = 0 ] && [ -n "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1; then
    cp "$busybox" "$place/root/bin/busybox"
    ln "$file" "$place/root/model.llamafile"
    same "nothing but busybox" "$(env -i /usr/sbin/chroot "$place/root" /bin/busybox sh /model.llamafile "$@")"
fi
rm -rf "$place"
