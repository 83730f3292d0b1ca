#!/bin/sh
# Prints the loop devices whose file lies in a file system that is mounted nowhere any more: what remains of a run that was
# killed, for its mounts went with its namespaces. With --detach they are given back to the kernel.
set -u

losetup --list --noheadings --raw --output NAME | while read -r device; do
    file=/sys/block/${device#/dev/}/loop/backing_file
    # A file whose file system this process can see has more than one name in its path.
    case $(cat "$file" 2> /dev/null) in
        /*/* | "") continue ;;
    esac
    # A device that does not answer belongs to somebody who is only slow; one whose server is dead has no numbers.
    numbers=$(timeout 5 losetup --list --noheadings --raw --output BACK-MAJ:MIN "$device" 2> /dev/null)
    [ $? != 124 ] || continue
    if [ -n "$numbers" ] && grep -qs " $numbers " /proc/[0-9]*/mountinfo; then continue; fi
    echo "$device"
    [ "${1:-}" != --detach ] || losetup --detach "$device"
done
