# Sourced by the jobs that run inside the guest.

say() { echo "--- [$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() { echo "FAIL: $*"; exit 1; }

# wait_for SECONDS COMMAND...: until the command succeeds; fails when the time is over
wait_for() {
  wait_for_end=$(($(cut -d. -f1 /proc/uptime) + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt $wait_for_end ] || return 1
    busybox usleep 100000
  done
}

# docker_up: a real engine with its classic storage and bridge; logs under $OUT
docker_up() {
  for module in overlay bridge br_netfilter veth iptable_filter iptable_nat nf_conntrack xt_conntrack xt_addrtype xt_MASQUERADE; do
    modprobe -q $module
  done
  containerd >"$OUT/containerd.log" 2>&1 &
  wait_for 60 test -S /run/containerd/containerd.sock || { tail -n 20 "$OUT/containerd.log"; return 1; }
  dockerd --containerd /run/containerd/containerd.sock >"$OUT/dockerd.log" 2>&1 &
  wait_for 120 docker version || { tail -n 20 "$OUT/dockerd.log"; return 1; }
}

# docker_image: an image `bed` out of the guest's own static busybox; no registry is asked
docker_image() {
  mkdir -p /tmp/image/bin /tmp/image/data /tmp/image/tmp
  cp /bin/busybox /tmp/image/bin/
  for applet in sh cat dd ls sha256sum sync sleep df; do ln -sf busybox /tmp/image/bin/$applet; done
  tar -c -C /tmp/image . | docker import -c 'ENV PATH=/bin' -c 'CMD ["/bin/sh"]' - bed >/dev/null
}

# lio_up: the kernel's iSCSI target, ready to be configured; its records are kept where it looks for them by default
lio_up() {
  mkdir -p /var/target/alua /var/target/pr
  modprobe -a target_core_mod target_core_file iscsi_target_mod || return 1
  grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config || return 1
  mkdir -p /sys/kernel/config/target/iscsi
}

# nbd_left: the devices that are connected, if any
nbd_left() { cat /sys/block/nbd*/pid 2>/dev/null; }
