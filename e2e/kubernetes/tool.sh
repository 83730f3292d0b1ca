#!/usr/bin/env bash
# Prints the path of a program that tests with Kubernetes need; builds it from its Go module if it is not in the cache.
#
#     tool.sh csi-sanity
#
# The cache is $E2E_KUBERNETES, or ~/.cache/sheepdog/kubernetes. Go is taken from the machine if it is new enough, else
# from the Go module proxy, which has it as a module, into the cache.
set -euo pipefail

cache=${E2E_KUBERNETES:-$HOME/.cache/sheepdog/kubernetes}
proxy=${GOPROXY:-https://proxy.golang.org}
proxy=${proxy%%[,|]*}
go_version=1.26.8
go_sha256=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7

# name, module path of the program, version
versions() {
    cat <<END
csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity v5.6.0
END
}

name=${1:?which program?}
line=$(versions | grep "^$name ") || { echo "tool.sh: no program $name is known" >&2; exit 2; }
read -r _ package version <<< "$line"
# One version beside the other: a new one never finds the old one's program.
bin=$cache/bin/$name-$version
if [ -x "$bin" ]; then
    echo "$bin"
    exit 0
fi

mkdir -p "$cache/bin"
exec 9> "$cache/lock"
flock 9
[ -x "$bin" ] && { echo "$bin"; exit 0; }

new_enough() {
    local found
    found=$("$1" env GOVERSION 2> /dev/null) || return 1
    [ "$(printf '%s\n' "go1.26" "$found" | sort -V | head -n 1)" = "go1.26" ]
}

go=$(command -v go || true)
if [ -z "$go" ] || ! new_enough "$go"; then
    go=$cache/go-$go_version/bin/go
    if [ ! -x "$go" ]; then
        echo "fetching Go $go_version into $cache" >&2
        part=$(mktemp -d "$cache/part.XXXXXX")
        trap 'rm -rf "$part"' EXIT
        module=v0.0.1-go$go_version.linux-amd64
        curl --silent --show-error --fail --location --output "$part/go.zip" \
            "$proxy/golang.org/toolchain/@v/$module.zip"
        echo "$go_sha256  $part/go.zip" | sha256sum --check --quiet -
        python3 -m zipfile -e "$part/go.zip" "$part"
        chmod +x "$part/golang.org/toolchain@$module"/bin/* "$part/golang.org/toolchain@$module"/pkg/tool/*/*
        mv "$part/golang.org/toolchain@$module" "$cache/go-$go_version"
        rm -rf "$part"
        trap - EXIT
    fi
fi

echo "building $name $version (once)" >&2
part=$(mktemp -d "$cache/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
CGO_ENABLED=0 GOFLAGS=-trimpath GOTOOLCHAIN=local GOBIN=$part "$go" install "$package@$version" >&2
mv "$part/$name" "$bin"
echo "$bin"
