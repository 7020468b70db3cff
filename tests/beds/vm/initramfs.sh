#!/bin/busybox sh
# First process of the guest: loads what leads to the disks, unpacks the job, hands over to the job's own init.
# Disks come in a fixed order: vda root (thrown away), vdb the job (a tar), vdc what comes back (a tar).
b=/bin/busybox
give_up() { echo "bed: $1"; $b poweroff -f; }

$b mount -t proc none /proc
$b mount -t sysfs none /sys
$b mount -t devtmpfs none /dev
for module in /modules/*; do $b insmod "$module"; done
tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ] && [ -b /dev/vdc ]; do
  tries=$((tries + 1))
  [ $tries -lt 500 ] || give_up "the disks did not appear"
  $b usleep 20000
done
$b mount -t ext4 -o noatime /dev/vda /root || give_up "cannot mount the root disk"
$b mount -t tmpfs -o size=70%,mode=755 none /root/job
$b tar -x -f /dev/vdb -C /root/job || give_up "cannot unpack the job"
for place in proc sys dev; do $b mount --move /$place /root/$place; done
exec $b switch_root /root /bin/busybox sh /job/bed/init.sh
