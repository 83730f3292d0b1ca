#!/usr/bin/env bash
# Prints the path of the lowest layer of an image: Debian with some packages, as a tar archive. It is the Debian of this
# machine, because programs that were built here run on its libraries.
#
#     base.sh                          for our image, with the packages that the Dockerfile names
#     base.sh postgresql postgresql    a layer of this name, with these packages
#
# Environment: E2E_KUBERNETES (default ~/.cache/sheepdog/kubernetes), DEBIAN_MIRROR
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${E2E_KUBERNETES:-$HOME/.cache/sheepdog/kubernetes}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
name=${1:-base}
packages=${2:-$(sed -n 's/^ARG PACKAGES="\(.*\)"$/\1/p' "$here/../../Dockerfile")}
export SOURCE_DATE_EPOCH=1700000000 LC_ALL=C

layer=$cache/$name-$suite-$( (echo "$packages" && cat "$here/base.sh") | sha256sum | cut -c1-16).tar
mkdir -p "$cache"
exec 9> "$cache/base.lock"
flock 9
if [ ! -f "$layer" ]; then
    echo "installing Debian $suite from $mirror into a layer (once)" >&2
    part=$(mktemp "$cache/part.XXXXXX.tar")
    trap 'rm -f "$part"' EXIT
    unshare --mount --propagation private mmdebstrap --quiet --mode=root --variant=essential --skip=output/dev \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --include=usr-is-merged \
        --include="${packages// /,}" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/i18n/*' --dpkgopt='path-exclude=/usr/lib/*/gconv/*' \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/var/lib/postgresql/*' \
        "$suite" "$part" \
        "deb $mirror $suite main" "deb ${mirror/%debian/debian-security} $suite-security main" >&2
    mv "$part" "$layer"
    trap - EXIT
    find "$cache" -maxdepth 1 -name "$name-*.tar" ! -path "$layer" -delete
fi
echo "$layer"
