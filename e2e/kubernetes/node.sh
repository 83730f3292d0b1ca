#!/bin/sh
# What a node of the local Kubernetes does inside its namespaces, and what happens to its control groups.
#
#   node.sh boot NAME DIR GROUP        first process of a node: mounts, then reaps whatever loses its parent
#   node.sh run GROUP PROGRAM [ARG]... becomes a program in the group of a node's own programs
#   node.sh freeze|thaw GROUP          stops and continues everything in a node
#   node.sh clean GROUP DIR            waits for the end of standard input, then removes all that a run has left:
#                                      processes, control groups, loop devices, files. It is started with the run and
#                                      outlives it, so it does not matter how the run ends.
#
# GROUP is a path below the root of every control group hierarchy: RUN, or RUN/NODE.
set -eu

# Version 1 has a hierarchy for each controller, version 2 one for all.
hierarchies() {
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        echo /sys/fs/cgroup
    else
        awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) == "cgroup") print $5 }' /proc/self/mountinfo
    fi
}

# A new group of cpusets has no processors and takes no process; it gets those of the group above.
make_group() {
    local path=$1
    [ -d "$path" ] || {
        make_group "${path%/*}"
        mkdir -p "$path"
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$path/$file" ] || [ -n "$(cat "$path/$file")" ] || cat "${path%/*}/$file" > "$path/$file"
        done
    }
}

enter() {
    for tree in $(hierarchies); do
        make_group "$tree/$1"
        echo 0 > "$tree/$1/cgroup.procs"
    done
}

freezer() { # GROUP, state in version 1, state in version 2
    if [ -e "/sys/fs/cgroup/$1/cgroup.freeze" ]; then
        echo "$3" > "/sys/fs/cgroup/$1/cgroup.freeze"
    elif [ -e "/sys/fs/cgroup/freezer/$1/freezer.state" ]; then
        echo "$2" > "/sys/fs/cgroup/freezer/$1/freezer.state"
    fi
}

boot() { # NAME DIR GROUP
    # Those of an earlier life would be taken for containers.
    wipe "$3"
    enter "$3"
    # From here on the node's group is the root of its groups.
    exec unshare --cgroup -- sh "$0" init "$1" "$2"
}

init() { # NAME DIR
    for tree in $(hierarchies); do
        options=$(awk -v tree="$tree" '$5 == tree { print $NF }' /proc/self/mountinfo)
        kind=$(stat --file-system --format %T "$tree")
        umount "$tree"
        case $kind in
            cgroup2fs) mount -t cgroup2 -o "$options" cgroup2 "$tree" ;;
            *) mount -t cgroup -o "$options" cgroup "$tree" ;;
        esac
    done
    enter daemons
    hostname "$1"
    mount -t proc proc /proc
    # The kubelet would set these for the whole machine; it leaves alone what has its value.
    mkdir -p "$2/sys"
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
                   kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        file=$2/sys/$(echo "${setting%=*}" | tr / .)
        echo "${setting#*=}" > "$file"
        mount --bind "$file" "/proc/sys/${setting%=*}"
    done
    echo 1 > /proc/sys/net/ipv4/ip_forward
    for place in lib log; do
        mkdir -p "$2/$place"
        mount --bind "$2/$place" /var/$place
    done
    mkdir -p /var/lib/kubelet /var/lib/containerd /var/lib/sheepdog /var/log/pods /var/log/containers
    mount -t tmpfs tmpfs /run
    mkdir -p /run/containerd /run/lock
    # What a pod mounts there is seen by the kubelet and by other pods.
    mount --make-shared /var/lib
    mount --make-shared /run
    : > /run/booted
    while :; do
        sleep 3600 &
        wait
    done
}

processes() {
    for tree in $(hierarchies); do
        find "$tree/$1" -name cgroup.procs -exec cat {} + 2> /dev/null || true
    done | sort -u
}

wipe() { # GROUP: ends everything in it, and removes it
    for _ in $(seq 100); do
        # What is frozen does not die.
        for tree in $(hierarchies); do
            find "$tree/$1" -maxdepth 1 -type d 2> /dev/null | while read -r group; do
                freezer "${group#"$tree/"}" THAWED 0
            done
        done
        left=$(processes "$1")
        [ -n "$left" ] || break
        # Some may have ended in between.
        kill -9 $left 2> /dev/null || true
        sleep 0.1
    done
    for tree in $(hierarchies); do
        [ ! -d "$tree/$1" ] || find "$tree/$1" -depth -type d -exec rmdir {} +
    done
}

clean() { # GROUP DIR
    cat > /dev/null
    wipe "$1"
    sh "$(dirname "$0")/../loops.sh" --detach > /dev/null
    rm -rf --one-file-system "$2"
}

case $1 in
    boot) shift && boot "$@" ;;
    init) shift && init "$@" ;;
    run)
        enter "$2/daemons"
        shift 2
        exec "$@"
        ;;
    freeze) freezer "$2" FROZEN 1 ;;
    thaw) freezer "$2" THAWED 0 ;;
    clean) shift && clean "$@" ;;
    *) echo "node.sh: $1?" >&2 && exit 2 ;;
esac
