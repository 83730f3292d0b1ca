#!/usr/bin/env bash
# All combinations, three short rounds one after the other: usage: run.sh [DIR [SECONDS]]
set -euo pipefail
dir=${1:-/tmp/cpu-ceiling.d}
seconds=${2:-3}
here=$(dirname "$(readlink -f "$0")")
cargo build --quiet --release --manifest-path "$here/Cargo.toml"
program=${CARGO_TARGET_DIR:-$here/target}/release/cpu-ceiling
mkdir -p "$dir"
trap 'rm -rf "$dir"' EXIT
echo "load average $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors"
for round in 1 2 3; do
    for disk in none write sync; do
        for depth in 1 32; do
            for shards in 1 2; do
                # Two shards at depth 1 would be depth 2.
                if [ "$depth" = 1 ] && [ "$shards" = 2 ]; then continue; fi
                for engine in epoll uring; do
                    echo "$round: $("$program" run "$engine" "$shards" "$disk" "$depth" "$seconds" "$dir")"
                done
            done
        done
    done
done
echo "load average $(cut -d' ' -f1-3 /proc/loadavg)"
