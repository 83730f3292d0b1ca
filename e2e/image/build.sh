#!/usr/bin/env bash
# Builds the disk image that the demonstration boots: a small Debian whose boot loader, kernel and root
# file system all live on one raw disk (MBR, GRUB, ext4), so that a machine can start from a volume alone.
#
# Usage: build.sh            prints the path of the image on stdout, everything else on stderr
# Environment: E2E_CACHE   where the image is kept (default ~/.cache/sheepdog)
#              DEBIAN_MIRROR (default http://deb.debian.org/debian)
#
# Nothing is mounted outside a private mount namespace and no loop device is used: the file system is filled by
# mke2fs -d, and the boot loader is written with dd into the gap before the first partition.
set -euo pipefail

readonly SUITE=bookworm
readonly DISK_MIB=1024 PART_START=2048 SECTOR=512
readonly FS_UUID=5eed0000-5eed-4eed-8eed-5eed00000001
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000 LC_ALL=C
export PATH="$PATH:/usr/sbin:/sbin"

here="$(cd "$(dirname "$0")" && pwd)"
cache="${E2E_CACHE:-${HOME:-/root}/.cache/sheepdog}"
mirror="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
say() { printf 'image: %s\n' "$*" >&2; }

# The name carries a hash of everything that goes in (this directory), so a changed script makes a new image.
hash="$(cat "$here/build.sh" "$here/guest-init" "$here/initrd-init" | sha256sum | cut -c1-16)"
image="$cache/image-$hash.raw"
mkdir -p "$cache"
exec 9>"$cache/image.lock"
flock 9
if [ -f "$image" ]; then
    say "already built: $image"
    printf '%s\n' "$image"
    exit 0
fi

[ "$(id -u)" = 0 ] || { say "must run as root (mmdebstrap and device ownership in the image)"; exit 1; }
for tool in mmdebstrap mke2fs debugfs grub-mkimage dpkg-deb flock unshare; do
    command -v "$tool" >/dev/null || { say "missing: $tool ('make tools' installs what is missing)"; exit 1; }
done
grub=/usr/lib/grub/i386-pc
[ -f "$grub/boot.img" ] || { say "missing: $grub/boot.img (Debian package grub-pc-bin)"; exit 1; }

work="$(mktemp -d "$cache/image-work.XXXXXX")"
trap 'rm -rf --one-file-system "$work"' EXIT

# --- root file system -------------------------------------------------------------------------------------------
# The kernel and busybox are unpacked rather than installed: their maintainer scripts would pull in
# initramfs-tools and udev, and the generic initrd takes most of the boot time under emulation.
cat > "$work/unpack" <<'HOOK'
set -eu
root="$1"
cd "$WORK"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel="$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)"
apt-get -qq -o APT::Sandbox::User=root download "$kernel" busybox-static >&2
for deb in ./*.deb; do
    dpkg-deb -f "$deb" Package Version | tr '\n' ' ' >> "$WORK/unpacked"
    echo >> "$WORK/unpacked"
done
mkdir "$WORK/kernel" "$WORK/busybox"
dpkg-deb -x ./linux-image-*.deb "$WORK/kernel"
dpkg-deb -x ./busybox-static_*.deb "$WORK/busybox"
HOOK
say "installing Debian $SUITE (essential packages) from $mirror"
WORK="$work" unshare --mount --propagation private mmdebstrap --quiet --mode=root --format=dir --variant=essential \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --include=usr-is-merged,mount \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/i18n/*' --dpkgopt='path-exclude=/usr/lib/x86_64-linux-gnu/gconv/*' \
    --customize-hook="sh $work/unpack \"\$1\"" \
    "$SUITE" "$work/root" \
    "deb $mirror $SUITE main" "deb ${mirror/%debian/debian-security} $SUITE-security main" >&2

say "packages in the image:"
dpkg-query --admindir="$work/root/var/lib/dpkg" -W -f='  ${Package} ${Version}\n' >&2
sed 's/^/  /; s/$/(unpacked)/' "$work/unpacked" >&2

root="$work/root"
kver="$(basename "$work"/kernel/lib/modules/*)"
install -m 644 "$work/kernel/boot/vmlinuz-$kver" "$root/boot/vmlinuz"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
install -m 755 "$here/guest-init" "$root/sbin/init"
install -m 755 "$work/busybox/bin/busybox" "$root/bin/busybox"
echo sheep-guest > "$root/etc/hostname"
echo "LABEL=root / ext4 errors=remount-ro 0 1" > "$root/etc/fstab"

# --- initrd: busybox and the few modules between the kernel and its root file system ------------------------------
initrd="$work/initrd"
mkdir -p "$initrd"/{bin,dev,proc,sys,root,lib/modules}
cp "$work/busybox/bin/busybox" "$initrd/bin/busybox"
install -m 755 "$here/initrd-init" "$initrd/init"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    find "$work/kernel/lib/modules/$kver" -name "$module.ko" -exec cp {} "$initrd/lib/modules/" \;
    echo "$module" >> "$initrd/lib/modules/order"
done
# A cpio archive (newc format) written by hand: cpio(1) is not on every machine, and puts inode numbers in.
entry() { # entry NAME MODE [FILE]
    local size=0 at
    [ -z "${3:-}" ] || size=$(stat -c %s "$3")
    serial=$((serial + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$serial" "$2" 0 0 1 "$SOURCE_DATE_EPOCH" "$size" 0 0 0 0 $((${#1} + 1)) 0
    printf '%s\0' "$1"
    at=$((110 + ${#1} + 1)); head -c $(((4 - at % 4) % 4)) /dev/zero
    [ -z "${3:-}" ] || cat "$3"
    head -c $(((4 - size % 4) % 4)) /dev/zero
}
archive() {
    local path serial=0
    (cd "$initrd" && find . -mindepth 1 -printf '%P\n' | sort) | while read -r path; do
        if [ -d "$initrd/$path" ]; then entry "$path" $((8#40755)); else entry "$path" $((8#100755)) "$initrd/$path"; fi
    done
    entry 'TRAILER!!!' 0
}
archive | gzip -9n > "$root/boot/initrd.img"

# --- boot loader configuration, on the file system ------------------------------------------------------------------
mkdir -p "$root/boot/grub"
cat > "$root/boot/grub/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_output serial
echo "GRUB: reading kernel and initrd from the disk"
linux /boot/vmlinuz root=/dev/vda1 console=ttyS0,115200 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable 8250.nr_uarts=1 audit=0
initrd /boot/initrd.img
boot
CFG

# --- the disk -------------------------------------------------------------------------------------------------------
say "writing the disk"
disk="$work/disk.raw"
truncate -s "${DISK_MIB}M" "$disk"
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
sectors=$((DISK_MIB * 2048 - PART_START))
# orphan_file and metadata_csum_seed are off because GRUB 2.06 refuses to read a file system that has them.
mke2fs -q -F -t ext4 -b 4096 -L root -U "$FS_UUID" -O '^orphan_file,^metadata_csum_seed' -J size=8 -m 0 -N 32768 \
    -E "offset=$((PART_START * SECTOR)),hash_seed=$FS_UUID,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0" \
    -d "$root" "$disk" "$((sectors / 8))" >&2
# mke2fs copies the change time of every file, which is now; set it too, so that equal input gives an equal image.
(cd "$root" && find . -printf 'set_inode_field "/%P" ctime @'"$SOURCE_DATE_EPOCH"'\n') \
    | debugfs -w -f - "$disk?offset=$((PART_START * SECTOR))" > /dev/null 2>&1

# MBR: GRUB's boot.img without touching the partition table, then one active Linux partition, then the signature.
le32() { printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }
put() { dd of="$disk" bs=1 seek="$1" conv=notrunc status=none; }
head -c 440 "$grub/boot.img" | put 0
# shellcheck disable=SC2059
printf "$(le32 $((0x5eed5eed)))\\x00\\x00" | put 440
# shellcheck disable=SC2059
printf "\\x80\\xfe\\xff\\xff\\x83\\xfe\\xff\\xff$(le32 $PART_START)$(le32 $sectors)" | put 446
printf '\x55\xaa' | put 510

# GRUB's core image in the gap. Its own block list already says "the rest follows at sector 2".
grub-mkimage -d "$grub" -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" \
    biosdisk part_msdos ext2 normal configfile linux serial terminal echo
core=$(stat -c %s "$work/core.img")
[ "$core" -lt $(((PART_START - 1) * SECTOR)) ] || { say "boot loader too large: $core"; exit 1; }
dd if="$work/core.img" of="$disk" bs=$SECTOR seek=1 conv=notrunc status=none

fallocate --dig-holes "$disk"
say "$(stat -c %s "$disk") bytes, $(($(stat -c %b "$disk") / 2048)) MiB allocated, kernel $kver"
mv "$disk" "$image"
# Images of older versions of this script are of no use any more.
find "$cache" -maxdepth 1 -name 'image-*.raw' ! -name "image-$hash.raw" -delete
printf '%s\n' "$image"
