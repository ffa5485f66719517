#!/bin/sh
:<<"::CMD"
@CMD@
::CMD
# A model, its engine and its licences in one file. What it is: sh FILE --inspect. Is it whole: sh FILE --verify.
# Behind this page: more of this script, the boot code, and an ordinary ZIP archive (unzip -l FILE).
self=$0
case $self in /*) ;; *) self=$PWD/$self ;; esac
py="@PYTHON@"
s=$(dd if="$self" bs=2048 skip=@SCRIPT_SKIP@ count=@SCRIPT_COUNT@ 2>&-)
h=$(printf '%s\n' "$s" | { sha256sum 2>&- || shasum -a 256 2>&-; })
case $h in '' | @SCRIPT_SHA256@*) eval "$s" ;; esac
echo "gemmafile: $self is cut or damaged" >&2
exit 126
