# The second part of the head: which Python runs the boot code. Plain sh, for any shell; no /dev, /proc or HOME needed.
say() { echo "gemmafile: $*" >&2; }
if [ ! -e /proc/self/exe ] && [ "$(echo x | tail -n 1 2>&-)" != x ]; then
    for b in /bin/busybox /usr/bin/busybox /busybox; do # its shell finds not all of its other halves by itself
        [ -x $b ] || continue
        for w in dd gzip head id ls mkdir mv rm sha256sum sleep tar uname; do eval "$w() { $b $w \"\$@\"; }"; done
        break
    done
fi
system=$(uname -sm)
case ${GEMMAFILE_PLATFORM:-} in
linux-x86_64) system="Linux x86_64" ;;
linux-aarch64) system="Linux aarch64" ;;
esac
rt=
case $system in
@RUNTIMES@
*) ;;
esac
[ -r "$self" ] || { say "cannot read $self"; exit 126; }
quiet=/dev/null
[ -c /dev/null ] || quiet=

hex() { # SHA-256 of stdin, or nothing where this system has no program for it
    if command -v sha256sum >"$q" 2>&1; then sha256sum
    elif command -v shasum >"$q" 2>&1; then shasum -a 256
    elif command -v sha256 >"$q" 2>&1; then sha256 -q
    elif command -v openssl >"$q" 2>&1; then openssl dgst -sha256 -r
    fi | { read -r word _ || :; echo "${word:-}"; }
}

ours() { # FOLDER: a folder of our own that nobody else may write, in a place where nobody else may rename it
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] || return 1
    case $(ls -ld "$1") in ?????w* | ????????w*) return 1 ;; esac
    case $(ls -ldL "$1/..") in ????????w[!tT]*) return 1 ;; esac
    return 0
}

usable() { # FOLDER: ours, made where it is missing, and writable
    [ -d "$1" ] || (umask 077 && mkdir -p "$1") 2>&- || return 1
    ours "$1" && [ -w "$1" ]
}

member() { dd if="$self" bs=65536 skip="$skip" count="$count" 2>"$q" | head -c "$size"; }

unpack() { # FOLDER: the runtime, whole and checked, as FOLDER/rt-KEY; 1 where that cannot be
    target=$1/rt-$rt
    [ -e "$target/whole" ] && [ -O "$target" ] && return 0 # `whole`, never read, goes first where old files are swept
    q=${quiet:-$1/.quiet}
    lock=$target.lock
    n=0
    until mkdir "$lock" 2>&-; do
        [ -e "$target/whole" ] && return 0
        [ -d "$lock" ] || return 1
        owner=
        [ -s "$lock/pid" ] && read -r owner 2>&- <"$lock/pid"
        # A dead owner, or none after three seconds: whoever held the lock was killed. A minute is enough for all.
        if [ -n "$owner" ] && ! kill -0 "$owner" 2>&-; then rm -rf "$lock"; fi
        [ -z "$owner" ] && [ $n -gt 30 ] && rm -rf "$lock"
        [ $n -gt 600 ] && lock= && break
        n=$((n + 1))
        sleep 0.1 2>&- || sleep 1
    done
    [ -n "$lock" ] && echo $$ 2>"$q" >"$lock/pid"
    if [ ! -e "$target/whole" ]; then
        t=$target.tmp.$$
        [ -n "$lock" ] && rm -rf "$target".tmp.*
        found=$(member | hex)
        if [ -n "$found" ] && [ "$found" != "$sha" ]; then
            unlock
            say "$self is damaged: the Python in it is not the one it was packed with"
            exit 1
        fi
        (umask 077 && mkdir "$t") 2>"$q" &&
            member | gzip -dc 2>"$q" | (cd "$t" && umask 077 && tar xf -) 2>"$q" &&
            [ -e "$t/whole" ] && runs "$t" &&
            { [ ! -d "$target" ] || [ -e "$target/whole" ] || mv "$target" "$target.old.$$"; } &&
            mv "$t" "$target" 2>"$q" || { rm -rf "$t"; unlock; return 1; }
        rm -rf "$target.old.$$"
        [ -d "$target/rt-$rt.tmp.$$" ] && rm -rf "$target/rt-$rt.tmp.$$"
    fi
    unlock
    return 0
}

unlock() { if [ -n "$lock" ]; then rm -rf "$lock"; fi; }

runs() { # RUNTIME: not on a noexec file system, not for another kind of machine
    if [ -n "$ld" ]; then
        ${GEMMAFILE_EMULATOR:-} "$1/$ld" --library-path "$1/lib" "$1/$exe" -I -S -c '' 2>"$q"
    else
        ${GEMMAFILE_EMULATOR:-} "$1/$exe" -I -S -c '' 2>"$q"
    fi
}

checked="@CHECKED@"

launch() { # CACHE RUNTIME ARGUMENTS
    c=$1 d=$2
    shift 2
    if [ -n "$ld" ]; then
        exec ${GEMMAFILE_EMULATOR:-} "$d/$ld" --library-path "$d/lib" "$d/$exe" -I -S -c "$checked" "$py" "$self" "$c" "$@"
    fi
    exec ${GEMMAFILE_EMULATOR:-} "$d/$exe" -I -S -c "$checked" "$py" "$self" "$c" "$@"
}

launch_in_memory() { # FOLDER ARGUMENTS: a runtime for this start alone, in FOLDER/private-PID; boot.py sees to its end
    n=0
    until usable "$1" && (umask 077 && mkdir "$1/private-$$-$n") 2>&-; do # one that ends may just be removing FOLDER
        n=$((n + 1))
        [ $n -gt 9 ] && return 1
    done
    c=$1/private-$$-$n
    trap 'forget "$c"; exit 130' HUP INT TERM
    shift
    if unpack "$c"; then launch "$c" "$c/rt-$rt" "$@"; fi
    forget "$c"
    trap - HUP INT TERM
}

forget() { # FOLDER, and the one it is in, if nobody else is there
    rm -rf "$1"
    rmdir "${1%/*}" 2>&-
}

if [ -z "${GEMMAFILE_PYTHON:-}" ] && [ -n "$rt" ]; then
    case $system in Darwin*) home=Library/Caches ;; *) home=.cache ;; esac
    me=$(id -u)
    a=${GEMMAFILE_CACHE:-}
    b=${XDG_CACHE_HOME:+$XDG_CACHE_HOME/gemmafile}
    [ -n "$b" ] || b=${HOME:+$HOME/$home/gemmafile}
    e=${TMPDIR:-/tmp}/gemmafile-$me
    f=/var/tmp/gemmafile-$me
    g=/dev/shm/gemmafile-$me
    private=@PRIVATE@
    case " $* " in *" --private "*) private=yes ;; esac
    case $a in
    /*) [ -n "$private" ] && [ ! -e "$a/rt-$rt/whole" ] || { usable "$a" && unpack "$a" && launch "$a" "$a/rt-$rt" "$@"; } ;;
    esac
    for c in "$b" "$e" "$f" "$g"; do
        case $c in /*) ;; *) continue ;; esac
        [ -e "$c/rt-$rt/whole" ] && ours "$c" && [ -O "$c/rt-$rt" ] && launch "$c" "$c/rt-$rt" "$@"
    done
    tried=
    if [ -n "$private" ]; then
        a='' b='' e='' f='' g=''
        for m in /dev/shm/gemmafile-"$me" ${XDG_RUNTIME_DIR:+"$XDG_RUNTIME_DIR/gemmafile"} "/run/user/$me/gemmafile"; do
            [ -d "${m%/*}" ] && tried="$tried $m" && launch_in_memory "$m" "$@"
        done
        say "--private unpacks in memory only"
    fi
    for c in "$a" "$b" "$e" "$f" "$g"; do
        case $c in /*) ;; *) continue ;; esac
        tried="$tried $c"
        usable "$c" && unpack "$c" && launch "$c" "$c/rt-$rt" "$@"
    done
    say "no place to unpack the Python in this file ($mb MB): tried$tried"
    say "GEMMAFILE_CACHE names a folder of your own that has room and lets programs run"
fi
for p in ${GEMMAFILE_PYTHON:+"$GEMMAFILE_PYTHON"} @PYTHONS@ python3 python; do
    p=$(command -v "$p" 2>&-) || continue
    "$p" -I -S -c 'import sys;sys.exit(sys.version_info<(3,11))' 2>&- || continue
    exec "$p" -I -S -c "$checked" "$py" "$self" "" "$@"
done
say "this file has no Python for $system, and there is none here: install Python @PYTHON_LIST@"
exit 127
