#!/usr/bin/env bash
# The project's tests on the Pythons that only Debian's unstable suite has, in a chroot: tests/chroot.sh [VERSION ...]
#
# It runs as root, and makes the chroot once, in a folder that git ignores. What pip cannot install for a Python that is
# so new is left out, and with it the tests that need it.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSIONS=("${@:-3.14}")
[ $# -gt 0 ] || VERSIONS=(3.14 3.15)
ROOT=$PWD/.build/unstable
SOURCES=/srv/uringloop # in the chroot
PACKAGES=(ca-certificates gcc libc6-dev make)
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
        test_on "$version" || status=$?
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

# /dev is a copy of our own mounts: what is unmounted here stays mounted there.
mount_what_programs_need() {
    unmount
    mount -t proc proc "$ROOT/proc"
    mount --rbind /dev "$ROOT/dev"
    mount --make-rslave "$ROOT/dev"
    cp /etc/resolv.conf /etc/hosts "$ROOT/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$ROOT/tmp/authorities.crt" # of this machine, which may have more
}

unmount() {
    local mounted
    for mounted in proc dev; do
        mountpoint -q "$ROOT/$mounted" && umount --recursive "$ROOT/$mounted"
    done
    return 0
}

# A command in the chroot, with nothing of our environment.
inside() {
    chroot "$ROOT" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        DEBIAN_FRONTEND=noninteractive PIP_CERT=/tmp/authorities.crt PIP_DISABLE_PIP_VERSION_CHECK=1 \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} "$@"
}

test_on() {
    local place=$SOURCES-$1
    rm -rf "${ROOT:?}$place"
    mkdir -p "$ROOT$place"
    git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$ROOT$place"
    inside bash -euo pipefail -c '
        cd "$1"
        "python$2" -m venv .venv
        .venv/bin/pip install -q -e ".[test]"
        timeout --kill-after=30 1200 .venv/bin/python -m pytest -q
    ' bash "$place" "$1" </dev/null
}

main
