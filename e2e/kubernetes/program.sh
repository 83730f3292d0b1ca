#!/usr/bin/env bash
# Prints the paths of programs that tests with Kubernetes need; builds from its Go module what is not in the cache.
#
#     program.sh csi-sanity helm       two of them
#     program.sh --all                 all of them: fifteen minutes on two cores, the first time
#
# Names, modules and versions are in the file `programs`. The cache is $E2E_KUBERNETES, or
# ~/.cache/sheepdog/kubernetes. Go is taken from the machine if it is new enough, else from the Go module proxy, which
# has it as a module. What only a build needs (compiled packages and sources, 12 GB for all programs) is in `build` below the
# cache: a build that fails leaves it to the next one, and one that succeeds removes it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${E2E_KUBERNETES:-$HOME/.cache/sheepdog/kubernetes}
work=$cache/build
proxy=${GOPROXY:-https://proxy.golang.org}
proxy=${proxy%%[,|]*}
go_version=1.26.8
go_sha256=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7

new_enough() {
    local found
    found=$("$1" env GOVERSION 2> /dev/null) || return 1
    [ "$(printf '%s\n' "go1.26" "$found" | sort -V | head -n 1)" = "go1.26" ]
}

# Sets $go.
find_go() {
    go=$(command -v go || true)
    if [ -n "$go" ] && new_enough "$go"; then return; fi
    go=$work/go-$go_version/bin/go
    if [ -x "$go" ]; then return; fi
    echo "fetching Go $go_version into $work" >&2
    local module=v0.0.1-go$go_version.linux-amd64
    curl --silent --show-error --fail --location --output "$part/go.zip" \
        "$proxy/golang.org/toolchain/@v/$module.zip"
    echo "$go_sha256  $part/go.zip" | sha256sum --check --quiet -
    python3 -m zipfile -e "$part/go.zip" "$part"
    chmod +x "$part/golang.org/toolchain@$module"/bin/* "$part/golang.org/toolchain@$module"/pkg/tool/*/*
    mv "$part/golang.org/toolchain@$module" "$work/go-$go_version"
}

# build NAME MODULE VERSION PACKAGE TARGET: a module of our own that takes over the program's go.mod, since `go install`
# refuses one with replacements. Those by folders of its repository are published as modules as well.
build() {
    local name=$1 module=$2 version=$3 package=$4 target=$5
    local sibling=$version flags="-s -w" major="" source
    if [ "$module" = k8s.io/kubernetes ]; then
        # Kubernetes 1.35.4 is published in parts, as k8s.io/... 0.35.4; and it is told its version by the linker.
        sibling=v0.${version#v1.}
        flags+=" -X k8s.io/component-base/version.gitVersion=$version"
        flags+=" -X k8s.io/component-base/version.gitMajor=1"
        flags+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<< "$version")"
    fi
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-mod=mod -trimpath" GOWORK=off
    export GOCACHE=$work/compiled GOPATH=$work/modules GOMODCACHE=$work/modules
    mkdir "$part/$name"
    cd "$part/$name"
    source=$(GOFLAGS="" "$go" mod download -json "$module@$version" | sed -n 's/^\s*"Dir": "\(.*\)".*/\1/p')
    if [[ $package == *.yaml ]]; then
        # No program, but files that belong to one.
        tail -n +1 -q "$source"/$package > program
        mv program "$target"
        return
    fi
    # From version 2 on the path of a module says which. What is not of this version is not there to be used at all.
    [[ $sibling == v[01].* ]] || major=/${sibling%%.*}
    sed -E -e 's/^module .*/module local/' \
        -e "s#^(replace )?(\s*)(\S+$major) => \.\.?/\S*#\1\2\3 => \3 $sibling#" \
        -e '/=> \.\.?\//d' "$source/go.mod" > go.mod
    cp "$source/go.sum" .
    chmod u+w go.mod go.sum
    "$go" mod edit -require="$module@$version"
    "$go" build -ldflags "$flags" -o "$part/$name/program" "$module${package:+/$package}"
    [ -x "$part/$name/program" ] || { echo "program.sh: $module/$package is no program" >&2; exit 1; }
    mv "$part/$name/program" "$target"
}

[ "${1:?which program?}" != --all ] || set -- $(awk '!/^#/ { print $1 }' "$here/programs")
mkdir -p "$cache/bin"
part=
for name in "$@"; do
    read -r _ module version package < <(grep "^$name " "$here/programs") \
        || { echo "program.sh: no program $name is known" >&2; exit 2; }
    # One version beside the other: a new one never finds the old one's program.
    target=$cache/bin/$name-$version
    if [ ! -e "$target" ] && [ -z "$part" ]; then
        exec 9> "$cache/lock"
        flock 9
        mkdir -p "$work"
        part=$(mktemp -d "$cache/part.XXXXXX")
        trap 'rm -rf "$part"' EXIT
        find_go
    fi
    if [ ! -e "$target" ]; then
        echo "building $name $version (once)" >&2
        (build "$name" "$module" "$version" "${package#.}" "$target") >&2
    fi
    echo "$target"
done
if [ -n "$part" ]; then
    # Go makes the folders of modules such that not even their owner may remove files.
    chmod -R u+w "$work"
    rm -rf "$work"
fi
