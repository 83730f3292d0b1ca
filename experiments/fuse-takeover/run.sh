#!/usr/bin/env bash
# A loop device on a FUSE file whose server is killed again and again: usage (root): run.sh [DIR]
# Needs fio, gcc, e2fsprogs, util-linux, Linux 6.9 or newer and memory cgroups of version 1. Leaves nothing behind.
#
# DEADLOCK=1 adds the cases that hang. While they do (20 s each), sync(2) hangs on the whole machine: not on one that
# others use. A watchdog that needs nothing from the stuck processes ends the FUSE connection.
set -euo pipefail
if [ "${1:-}" != inside ]; then
    # Mounts of our own, which go away with us.
    exec unshare --mount --propagation private -- "$0" inside "${1:-/tmp/fuse-takeover.d}"
fi
dir=$2
here=$(dirname "$(readlink -f "$0")")
group=/sys/fs/cgroup/memory/fuse-takeover.$$
mkdir -p "$dir/mnt" "$dir/fs" "$group"
gcc -O2 -Wall -o "$dir/holder" "$here/fuse-takeover.c"
loop=
watchdog=

# Whatever waits for the server gets an error. Fails with EBUSY under a loop device, but aborts all the same.
cut() { umount --force "$dir/mnt" 2> /dev/null || true; }
guard() { # SECONDS
    unguard
    (
        trap 'kill "$timer"' TERM
        sleep "$1" &
        timer=$!
        wait "$timer" && cut
    ) > /dev/null 2>&1 &
    watchdog=$!
}
unguard() { if [ -n "$watchdog" ]; then kill "$watchdog" 2> /dev/null || true; watchdog=; fi; }
say() { read -r -t 20 line <&"${holder[0]}" || line=none; }
tell() { echo "$1" >&"${holder[1]}"; say; }
begin() { # SIZE
    rm -f "$dir/backing"
    coproc holder { exec "$dir/holder" "$dir/mnt" "$dir/backing" "$1"; }
    holder_process=$holder_PID
    say
    tell start
}
attach() {
    loop=$(losetup --find --show --direct-io=on "$dir/mnt/disk")
    echo "   $loop, direct I/O: $(cat "/sys/block/${loop#/dev/}/loop/dio")"
}
finish() { # the loop device goes before the connection is cut, so that ext4 can write what it has
    timeout 30 umount "$dir/fs" 2> /dev/null || true
    if [ -n "$loop" ]; then timeout 30 losetup -d "$loop" || true; loop=; fi
    cut
    if [ -n "${holder_process:-}" ]; then
        tell quit
        echo "   holder: $line"
        wait "$holder_process" || true
        holder_process=
    fi
    unguard
}
cleanup() {
    # An interrupted run must not leave a device that hangs.
    cut
    finish
    umount "$dir/mnt" 2> /dev/null || true
    for _ in 1 2 3 4 5; do rmdir "$group" 2> /dev/null && break; sleep 0.2; done
    rm -rf "$dir"
}
trap cleanup EXIT
seconds() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(seconds)" 'BEGIN { printf "%.1f", b - a }'; }
stuck() { # where the server waits in the kernel
    tell pid
    echo "server in state $(awk '/^State/ { print $2 }' "/proc/$line/status"): $(tr '\n' ' ' < "/proc/$line/stack" | cut -c1-400)"
}
in_group() { sh -c 'echo $$ > "$0/cgroup.procs"; exec "$@"' "$group" "$@"; }

echo "1. verified writes through the loop device while its server is killed"
begin $((64 << 20))
guard 300
attach
fio --name=verify --filename="$loop" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --size=64m \
    --loops=4 --verify=pattern --verify_pattern=0x5eed%o --verify_fatal=1 --do_verify=1 --verify_state_save=0 \
    --output="$dir/fio.txt" &
fio=$!
kills=0
while kill -0 "$fio" 2> /dev/null && [ "$kills" -lt 200 ]; do
    sleep 0.3
    tell kill
    sleep 0.05
    tell resend
    kills=$((kills + 1))
done
if wait "$fio"; then echo "   fio verified, $kills servers killed"; else echo "   FIO FAILED"; cat "$dir/fio.txt"; fi

echo "2. requests that a dead server had read: with and without FUSE_NOTIFY_RESEND"
tell kill
tell stall
dd if=/dev/zero of="$loop" bs=64k count=16 oflag=direct status=none &
writer=$!
sleep 1
tell kill
tell start
sleep 3
if kill -0 "$writer" 2> /dev/null; then echo "   successor without it: the write hangs"; else echo "   UNEXPECTED: done"; fi
tell kill
tell resend
start=$(seconds)
if timeout 20 tail --pid="$writer" -f /dev/null && wait "$writer"; then
    echo "   successor with it: done after $(since "$start") s"
else
    echo "   STILL HANGS"
fi
finish

pressure() { # NAME WHERE WORDS KILLS
    begin $((768 << 20))
    for word in $3; do tell kill; tell "$word"; tell resend; done
    echo $((64 << 20)) > "$group/memory.limit_in_bytes"
    if [ "$2" = same ]; then tell pid; echo "$line" > "$group/cgroup.procs"; fi
    guard 60
    attach
    mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 "$loop" > /dev/null 2>&1
    mount "$loop" "$dir/fs"
    local start
    start=$(seconds)
    in_group timeout -k 1 300 dd if=/dev/zero of="$dir/fs/file" bs=1M count=512 conv=fsync status=none &
    local writer=$! kills=0
    while kill -0 "$writer" 2> /dev/null; do
        sleep 0.5
        if [ "$4" = kills ] && kill -0 "$writer" 2> /dev/null; then
            tell kill
            tell resend
            if [ "$2" = same ]; then echo "$line" > "$group/cgroup.procs"; fi
            kills=$((kills + 1))
        fi
        if awk -v t="$(since "$start")" 'BEGIN { exit !(t > 20) }'; then
            echo "   $1: HANGS after $(since "$start") s; $(stuck)"
            cut
            sleep 2
            break
        fi
    done
    if ! kill -0 "$writer" 2> /dev/null; then
        if wait "$writer"; then echo "   $1: 512 MiB written and synced in $(since "$start") s, $kills servers killed"
        else echo "   $1: FAILED after $(since "$start") s"; fi
    fi
    echo "   most memory used $(($(cat "$group/memory.max_usage_in_bytes") >> 20)) MiB, limit hit $(cat "$group/memory.failcnt") times"
    echo 0 > "$group/memory.max_usage_in_bytes"
    echo 0 > "$group/memory.failcnt"
    finish
}
echo "3. buffered writes to ext4 on the loop device in a memory cgroup of 64 MiB"
pressure "server outside the group" outside "" quiet
pressure "server in the same group" same "" quiet
pressure "server in the same group, servers killed" same "" kills
pressure "server outside that needs memory for each write" outside hungry quiet
if [ -n "${DEADLOCK:-}" ]; then
    pressure "server in the same group that needs memory for each write" same hungry quiet
    pressure "the same with PR_SET_IO_FLUSHER and mlockall" same "hungry flusher" quiet
fi
echo "left behind: $(losetup -a | grep -c fuse-takeover || true) loop devices"
