# Sourced by the jobs that run inside the guest.

say() { echo "--- [$(cut -d' ' -f1 /proc/uptime)] $*"; }
fail() { echo "FAIL: $*"; exit 1; }
ok() { echo "ok: $* [$(cut -d' ' -f1 /proc/uptime)]"; }

# at_end COMMAND: when the job ends, however it does; the last one first
ends=
at_end() { ends="$1; $ends"; }
trap 'eval "$ends"' EXIT

# field NAME: its value in a line of JSON
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

# wait_for SECONDS COMMAND...: until the command succeeds; fails when the time is over
wait_for() {
  wait_for_end=$(($(cut -d. -f1 /proc/uptime) + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt $wait_for_end ] || return 1
    busybox usleep 100000
  done
}

# docker_up OPTION...: a real engine with its classic storage and bridge; logs under $OUT
docker_up() {
  for module in overlay bridge br_netfilter veth iptable_filter iptable_nat nf_conntrack xt_conntrack xt_addrtype xt_MASQUERADE; do
    modprobe -q $module
  done
  containerd >"$OUT/containerd.log" 2>&1 &
  wait_for 60 test -S /run/containerd/containerd.sock || { tail -n 20 "$OUT/containerd.log"; return 1; }
  dockerd_up "$@"
}

# dockerd_up OPTION...: the engine itself, again too; $engine is its process
dockerd_up() {
  dockerd --containerd /run/containerd/containerd.sock "$@" >>"$OUT/dockerd.log" 2>&1 &
  engine=$!
  wait_for 120 docker version || { tail -n 20 "$OUT/dockerd.log"; return 1; }
}

# docker_image: an image `bed` out of the guest's own static busybox, kept as a tar; no registry is asked
docker_image() {
  mkdir -p /tmp/image/bin /tmp/image/data /tmp/image/tmp
  cp /bin/busybox /tmp/image/bin/
  for applet in sh cat dd ls sha256sum sync sleep df; do ln -sf busybox /tmp/image/bin/$applet; done
  tar -c -C /tmp/image . >/tmp/image.tar
  docker import -c 'ENV PATH=/bin' -c 'CMD ["/bin/sh"]' /tmp/image.tar bed >/dev/null
}

# writes_to VOLUME CONTAINER: a container that writes numbered records, each synced, until there is a file named stop
writes_to() {
  docker run -d --network none --name "$2" -v "$1:/data" bed sh -c \
    'i=0; while [ ! -e /data/stop ]; do i=$((i + 1)); echo $i >>/data/records && sync || exit 1; done' >/dev/null ||
    fail "a container that writes to $1"
}

# lio_up: the kernel's iSCSI target, ready to be configured; its records are kept where it looks for them by default
lio_up() {
  mkdir -p /var/target/alua /var/target/pr
  modprobe -a target_core_mod target_core_file iscsi_target_mod || return 1
  grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config || return 1
  mkdir -p /sys/kernel/config/target/iscsi
}

# lio_lun NAME NUMBER MIB: LUN of the kernel's target iqn.2026-11.test.lio:NAME, a file on tmpfs
lio_lun() {
  lio_group=/sys/kernel/config/target/iscsi/iqn.2026-11.test.lio:$1/tpgt_1
  lio_store=/sys/kernel/config/target/core/fileio_0/$1$2
  mkdir -p /tmp/luns "$lio_group" "$lio_store" && truncate -s "$3M" "/tmp/luns/$1$2" || return 1
  printf %s "fd_dev_name=/tmp/luns/$1$2,fd_dev_size=$(($3 << 20)),fd_buffered_io=1" >"$lio_store/control" || return 1
  printf %s "serial-$1-$2" >"$lio_store/wwn/vpd_unit_serial" || return 1
  printf 1 >"$lio_store/enable" || return 1
  mkdir "$lio_group/lun/lun_$2" && ln -s "$lio_store" "$lio_group/lun/lun_$2/store"
}

# lio_open NAME [USER SECRET]: that target on 127.0.0.1:3260, for any initiator, or for whoever knows the secret
lio_open() {
  lio_group=/sys/kernel/config/target/iscsi/iqn.2026-11.test.lio:$1/tpgt_1
  for lio_setting in generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0 authentication=${2:+1}; do
    lio_value=${lio_setting#*=}
    printf %s "${lio_value:-0}" >"$lio_group/attrib/${lio_setting%%=*}" || return 1
  done
  [ -z "$2" ] || { printf %s "$2" >"$lio_group/auth/userid" && printf %s "$3" >"$lio_group/auth/password"; } || return 1
  mkdir "$lio_group/np/127.0.0.1:3260" && printf 1 >"$lio_group/enable"
}

# nbd_left: the devices that are connected, if any
nbd_left() { cat /sys/block/nbd*/pid 2>/dev/null; }
