#!/bin/busybox sh
# PID 1 of the guest: makes a plain machine (no systemd), runs /job/run, packs its result, powers off.
# Travels with every job, so a change here needs no new image. /job/bed/settings holds shell assignments.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
b=/bin/busybox

mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=600,ptmxmode=666 none /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=1777 none /tmp
mount -t cgroup2 none /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
  echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done 2>/dev/null
mkdir -p /run/lock /run/docker/plugins
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/mounts /etc/mtab
echo bed >/proc/sys/kernel/hostname
ip link set lo up

. /job/bed/settings
for module in $BED_MODULES; do modprobe -q "$module"; done
if [ -n "$BED_NETWORK" ]; then
  modprobe -q virtio_net
  tries=0
  until [ -e /sys/class/net/eth0 ] || [ $tries -ge 200 ]; do tries=$((tries + 1)); $b usleep 20000; done
  ip address add 10.0.2.15/24 dev eth0
  ip link set eth0 up
  ip route add default via 10.0.2.2
fi

tries=0
until [ -c /dev/vport0p1 ] || [ $tries -ge 200 ]; do tries=$((tries + 1)); $b usleep 20000; done
port=/dev/vport0p1
[ -c $port ] || port=/dev/console

mkdir -p /job/out
cd /job || exit
export OUT=/job/out PATH=/job/bin:$PATH
# setsid: the limit ends the whole job, not only its shell
$b timeout -k 10 "$BED_SECONDS" $b setsid $b sh /job/run >$port 2>&1 </dev/null
echo $? >/job/bed/status
$b dmesg >/job/out/dmesg
tar -c -f /dev/vdc -C /job bed/status out || tar -c -f /dev/vdc -C /job bed/status
$b blockdev --flushbufs /dev/vdc
sync
$b poweroff -f
