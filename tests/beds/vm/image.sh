#!/bin/sh
# Makes the three files a guest boots from out of a freshly unpacked Debian tree.
# Called by mmdebstrap as its customize hook, as root, outside of the tree:  image.sh TREE OUTDIR SIZE
# The kernel package is unpacked rather than installed: its scripts would want initramfs-tools and a boot loader.
# No loop device and no mount: mke2fs fills the file system from the tree.
set -eu
tree=$1 out=$2 size=$3
here=$(cd "$(dirname "$0")" && pwd)

# --- kernel: mmdebstrap's apt knows the guest's archives
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)$/\1/p' | head -n 1)
[ -n "$kernel" ] || { echo "image.sh: the archive has no linux-image-cloud-amd64" >&2; exit 1; }
mkdir "$tree/unpack"
( cd "$tree/unpack" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" && dpkg-deb -x "$kernel"_*.deb . )
release=$(basename "$(echo "$tree"/unpack/boot/vmlinuz-*)" | sed 's/^vmlinuz-//')
modules=$tree/usr/lib/modules
mkdir -p "$modules"
for found in "$tree"/unpack/lib/modules/* "$tree"/unpack/usr/lib/modules/*; do
  if [ -d "$found" ]; then mv "$found" "$modules/"; fi
done
cp "$tree/unpack/boot/vmlinuz-$release" "$out/vmlinuz"
rm -rf "$tree/unpack"
depmod -b "$tree" "$release"

# --- initramfs: busybox and the modules on the way to the root disk, numbered in loading order
early=$out/early
rm -rf "$early"
mkdir -p "$early/bin" "$early/dev" "$early/proc" "$early/sys" "$early/root" "$early/modules"
cp "$tree/bin/busybox" "$early/bin/busybox"
ln -s busybox "$early/bin/sh"
cp "$here/initramfs.sh" "$early/init"
chmod 755 "$early/init"
number=100
for wanted in virtio_pci virtio_blk virtio_console ext4; do
  # a module built into the kernel has no "insmod" line
  modprobe -d "$tree" -S "$release" --show-depends "$wanted" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' >"$out/early.list"
while read -r file; do
  name=$(basename "$file")
  case $name in
    *.xz) xz -dc "$file" >"$early/modules/$number-${name%.xz}" ;;
    *.zst) zstd -qdc "$file" >"$early/modules/$number-${name%.zst}" ;;
    *) cp "$file" "$early/modules/$number-$name" ;;
  esac
  number=$((number + 1))
done <"$out/early.list"
( cd "$early" && find . | cpio --quiet -o -H newc | gzip -1 ) >"$out/initrd"
rm -rf "$early" "$out/early.list"

# --- settled files
echo bed >"$tree/etc/hostname"
echo '127.0.0.1 localhost bed' >"$tree/etc/hosts"
mkdir -p "$tree/job" "$tree/run/docker/plugins"
# docker drives the old iptables faster than the nft front under emulation
for tool in iptables ip6tables; do
  [ ! -e "$tree/usr/sbin/$tool-legacy" ] || ln -sf "/usr/sbin/$tool-legacy" "$tree/etc/alternatives/$tool"
done
rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin "$tree"/usr/share/doc/* "$tree"/usr/share/man/*

# --- root disk; no journal, as every boot has a throw-away overlay over it
# mmdebstrap has /proc, /sys and /dev mounted in the tree, unless mounting is not allowed (a plain container): taken
# off in a mount namespace of our own, so that mke2fs sees the tree alone and mmdebstrap finds its mounts again
truncate -s "$size" "$out/rootfs.img"
alone=
if grep -q " $tree/" /proc/self/mountinfo; then alone="unshare --mount"; fi
$alone sh -eu -c '
  cut -d" " -f5 /proc/self/mountinfo | grep "^$1/" | sort -r | while read -r place; do umount "$place"; done
  mke2fs -q -F -t ext4 -O ^has_journal -m 0 -L bed-root -E lazy_itable_init=1,nodiscard -d "$1" "$2"
' populate "$tree" "$out/rootfs.img"
