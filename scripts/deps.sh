#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# deps.sh - installs what the build and the tests need and this machine lacks, with apt-get.
#
#   scripts/deps.sh       compiler, make, cmake, pkg-config, cmocka, jansson, PCRE2,
#                         utf8proc, python3 with numpy
#   scripts/deps.sh ci    these, and what makes a check complete instead of skipped: g++ and
#                         clang-format
#
# Nothing is missing: says nothing and touches neither network nor disk.  Otherwise it names the
# packages; on a terminal it asks once, without one (or with CI set) it goes ahead.
set -euo pipefail

missing=()
need() { # PACKAGE TEST...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
have_header() { # NAME: known to pkg-config, or on the compiler's own search path
    pkg-config --exists "$1" || echo "#include <$1.h>" | gcc -E -o /dev/null -x c -
}
have_pcre2() { # its header wants to know a width first
    pkg-config --exists libpcre2-8 || echo '#include <pcre2.h>' | gcc -DPCRE2_CODE_UNIT_WIDTH=8 -E -o /dev/null -x c -
}
have_numpy() { # in any of the interpreters that tests/CMakeLists.txt tries
    local python
    for python in "${PYTHON:-python3}" python3 /usr/bin/python3; do
        "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("numpy") is None)' && return
    done
    return 1
}

need gcc command -v gcc
need libc6-dev gcc -E -o /dev/null -x c -include stdlib.h /dev/null
need make command -v make
need cmake command -v cmake
need pkg-config command -v pkg-config
need libcmocka-dev have_header cmocka
need libjansson-dev have_header jansson
need libpcre2-dev have_pcre2
need libutf8proc-dev have_header utf8proc
need python3 command -v python3
need python3-numpy have_numpy
if [[ ${1:-} == ci ]]; then
    need g++ command -v g++
    need clang-format command -v clang-format
fi
((${#missing[@]})) || exit 0

echo "deps: missing here: ${missing[*]}" >&2
if ! command -v apt-get >/dev/null; then
    echo "deps: no apt-get on this system: please install these (Debian's names) and run make again" >&2
    exit 1
fi
as_root=()
ask=
[[ -t 0 && -t 2 && -z ${CI:-} ]] && ask=yes
if [[ $(id -u) != 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "deps: neither root nor sudo: please run  apt-get install ${missing[*]}  as root" >&2
        exit 1
    fi
    as_root=(sudo)
    [[ $ask ]] || as_root=(sudo -n)
fi
if [[ $ask ]]; then
    read -r -p "deps: install them with ${as_root[*]:+sudo }apt-get? [Y/n] " answer
    case $answer in
    '' | [Yy]*) ;;
    *)
        echo "deps: nothing was installed" >&2
        exit 1
        ;;
    esac
fi
echo "deps: ${as_root[*]:+sudo }apt-get install ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
