#!/bin/sh
# onnxruntime_cpp.sh PYTHON FOLDER: ONNX Runtime as a C++ program wants it, in FOLDER. include/ are its headers, which no
# Python package has: the folder that ONNXRUNTIME_INCLUDE_DIR names, else those of Debian 13's libonnxruntime-dev, from
# the package sources that this Debian has. lib/ are links to the library of PYTHON's package onnxruntime.
set -eu
python=$1
folder=$2
release=trixie # the first with that package

fail() {
    echo "error: no headers of ONNX Runtime for C++: $1; name the folder of onnxruntime_cxx_api.h (a release of ONNX" \
        "Runtime has it as include/) in ONNXRUNTIME_INCLUDE_DIR" >&2
    exit 2
}

fetch() { # the package's headers into $1
    codename=$(. /etc/os-release 2>/dev/null && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}") || true
    [ -n "$codename" ] || fail "this system is no Debian"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        if [ -f "$file" ]; then
            sed "s/$codename/$release/g" "$file" >"$work/sources/$(basename "$file" .list).${file##*.}"
        fi
    done
    apt() {
        apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/sources" \
            -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Acquire::Languages=none \
            -o APT::Sandbox::User=root "$@" >&2
    }
    apt update && (cd "$work" && apt download libonnxruntime-dev) || fail "apt-get cannot download libonnxruntime-dev"
    dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/package"
    mv "$work/package/usr/include/onnxruntime" "$1"
}

mkdir -p "$folder/lib"
if [ -n "${ONNXRUNTIME_INCLUDE_DIR:-}" ]; then
    [ -f "$ONNXRUNTIME_INCLUDE_DIR/onnxruntime_cxx_api.h" ] || fail "ONNXRUNTIME_INCLUDE_DIR=$ONNXRUNTIME_INCLUDE_DIR has none"
    rm -rf "$folder/include"
    ln -s "$(cd "$ONNXRUNTIME_INCLUDE_DIR" && pwd)" "$folder/include"
elif [ ! -f "$folder/include/onnxruntime_cxx_api.h" ]; then
    rm -rf "$folder/include"
    fetch "$folder/include"
fi
library=$("$python" -c 'import onnxruntime, pathlib
print(next(pathlib.Path(onnxruntime.__file__).with_name("capi").glob("libonnxruntime.so.*")))')
ln -sf "$library" "$folder/lib/libonnxruntime.so"
ln -sf "$library" "$folder/lib/libonnxruntime.so.1" # the name that programs ask for
