#!/usr/bin/env bash
# The project's tests on the Pythons that only Debian's unstable suite has, in a chroot: tests/chroot.sh [VERSION ...]
# Or the benchmarks, beside the loops that exist for these Pythons only: tests/chroot.sh VERSION -- [ARGUMENT ...]
#
# It runs as root, and makes the chroot once, in a folder that git ignores. What pip cannot install for a Python that is
# so new is left out, and with it what needs it.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSIONS=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    VERSIONS+=("$1")
    shift
done
[ "${#VERSIONS[@]}" -gt 0 ] || VERSIONS=(3.14 3.15)
BENCHMARKS=("${@:2}")
TASK=test_on
[ $# -eq 0 ] || TASK=measure_on
LOOPS=(uvloop rloop zuvloop rsloop blazio zloop)
ROOT=$PWD/.build/unstable
SOURCES=/srv/uringloop # in the chroot
PACKAGES=(ca-certificates gcc libc6-dev libssl-dev make strace wrk)
for version in "${VERSIONS[@]}"; do
    PACKAGES+=("python$version" "python$version-dev" "python$version-venv" "libpython$version-testsuite")
done

main() {
    [ -e "$ROOT/ready" ] || make_the_chroot
    trap unmount EXIT
    mount_what_programs_need
    local version status=0
    inside apt-get install -y -q "${PACKAGES[@]}" >/dev/null
    for version in "${VERSIONS[@]}"; do
        printf '\n=== %s\n' "$(inside "python$version" --version)"
        "$TASK" "$version" || status=$?
    done
    return "$status"
}

make_the_chroot() {
    if ! command -v debootstrap >/dev/null; then
        apt-get update -q
        apt-get install -y -q debootstrap
    fi
    unmount
    rm -rf --one-file-system "$ROOT"
    mkdir -p "$ROOT"
    debootstrap --variant=minbase unstable "$ROOT" ${MIRROR:+"$MIRROR"}
    touch "$ROOT/ready"
}

# /dev is a copy of our own mounts: what is unmounted here stays mounted there. Lazily, because what a test has started
# may outlive it by a moment, and has /dev/null open.
mount_what_programs_need() {
    unmount
    mount -t proc proc "$ROOT/proc"
    mount --rbind /dev "$ROOT/dev"
    mount --make-rslave "$ROOT/dev"
    mount -t devpts -o ptmxmode=666 devpts "$ROOT/dev/pts" # of its own: /dev has none on every machine
    cp /etc/resolv.conf /etc/hosts "$ROOT/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$ROOT/tmp/authorities.crt" # of this machine, which may have more
}

unmount() {
    local mounted
    for mounted in proc dev; do
        mountpoint -q "$ROOT/$mounted" && umount --recursive --lazy "$ROOT/$mounted"
    done
    return 0
}

# A command in the chroot, with nothing of our environment.
inside() {
    chroot "$ROOT" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        DEBIAN_FRONTEND=noninteractive PIP_CERT=/tmp/authorities.crt PIP_DISABLE_PIP_VERSION_CHECK=1 \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} "$@"
}

copy_the_sources() {
    rm -rf "${ROOT:?}$1"
    mkdir -p "$ROOT$1"
    git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$ROOT$1"
}

test_on() {
    local place=$SOURCES-$1
    copy_the_sources "$place"
    inside bash -euo pipefail -c '
        cd "$1"
        "python$2" -m venv .venv
        .venv/bin/pip install -q -e ".[test]"
        timeout --kill-after=30 1200 .venv/bin/python -m pytest -q
    ' bash "$place" "$1" </dev/null
}

# What is measured is what is committed or staged, built anew if it has changed. Results are in .build/bench-VERSION.json.
measure_on() {
    local place=$SOURCES-bench-$1 results=.build/bench-$1.json
    local environment=$ROOT$place/.venv
    [ -d "$environment" ] && mv "$environment" "$ROOT/kept"
    copy_the_sources "$place"
    [ -d "$ROOT/kept" ] && mv "$ROOT/kept" "$environment"
    inside bash -euo pipefail -c '
        cd "$1"
        [ -d .venv ] || "python$2" -m venv .venv
        .venv/bin/pip install -q -e . aiohttp trustme
        for loop in "${@:4:$3}"; do
            .venv/bin/pip install -q --only-binary :all: "$loop" || echo "$loop: left out"
        done
        .venv/bin/python -m bench --json results.json "${@:4+$3}"
    ' bash "$place" "$1" "${#LOOPS[@]}" "${LOOPS[@]}" "${BENCHMARKS[@]}" </dev/null
    cp "$ROOT$place/results.json" "$results" && echo "$results"
}

main
