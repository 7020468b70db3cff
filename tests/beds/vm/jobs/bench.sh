# One iSCSI target of the kernel (LIO, RAM disk), and the ways to it as a block device: the kernel's own initiator, our daemon, qemu-nbd.
# Each job of fio goes over each way in turn. Nothing is worked out here: fio's reports and each thread's time on the processor go to $OUT,
# and the host reads them. Time is a count of instructions in this guest, so work is measured by number, not by time.
# bench.env may set: ROUNDS, IOS (operations of a 4 KiB job), MIB (of a 1 MiB job), WAYS, JOBS, PROFILE (a job to look at by perf).
. bed/lib.sh
ROUNDS=1 IOS=4000 MIB=96 WAYS='kernel ours qemu' JOBS='rr1 rw1 rr32 rw32 sr sw' PROFILE=
[ ! -e bench.env ] || . ./bench.env
IQN=iqn.2026-11.org.cinder-nbd:bench
PORTAL=127.0.0.1:3260
DISK_MIB=256

# --- the target
lio_up || fail "the guest's kernel has no LIO"
lio=/sys/kernel/config/target
store=$lio/core/rd_mcp_0/bench
group=$lio/iscsi/$IQN/tpgt_1
mkdir -p $store && echo rd_pages=$((DISK_MIB * 256)) >$store/control && printf bench >$store/wwn/vpd_unit_serial || fail "LIO's RAM disk"
echo 1 >$store/enable || fail "LIO's RAM disk"
mkdir -p $group/np/$PORTAL $group/lun/lun_0 || fail "LIO's target"
for setting in authentication=0 generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0 default_cmdsn_depth=128; do
  echo ${setting#*=} >$group/attrib/${setting%%=*} || fail "LIO: $setting"
done
ln -s $store $group/lun/lun_0/store && echo 1 >$group/enable || fail "LIO's target"

# --- the ways: each sets $device
sized() { [ "$(cat /sys/block/"$1"/size 2>/dev/null || echo 0)" -gt 0 ]; }
disk_of_session() {
  for session in /sys/class/iscsi_session/session*; do
    for disk in "$session"/device/target*/*/block/*; do
      if [ -e "$disk" ]; then device=${disk##*/}; return 0; fi
    done
  done
  return 1
}
way_kernel() {
  modprobe -q iscsi_tcp || fail "the guest's kernel has no iscsi_tcp"
  mkdir -p /run/lock/iscsi /etc/iscsi
  echo 'InitiatorName=iqn.2026-11.org.cinder-nbd:kernel' >/etc/iscsi/initiatorname.iscsi
  iscsid || fail "iscsid"
  at_end 'iscsiadm -m node -u >/dev/null 2>&1; killall iscsid'
  iscsiadm -m node -o new -T $IQN -p $PORTAL,1 >/dev/null || fail "iscsiadm: a node"
  wait_for 30 iscsiadm -m node -T $IQN -p $PORTAL -l || fail "iscsiadm: login"
  wait_for 30 disk_of_session || fail "no disk of the session"
}
way_ours() {
  printf 'runtime_dir = "/run/cinder-nbd"\nstate_dir = "/var/lib/cinder-nbd"\n' >/tmp/bed.toml
  cinder-nbd --config /tmp/bed.toml daemon >"$OUT/daemon.log" 2>&1 &
  daemon=$!
  at_end 'kill $daemon; wait $daemon'
  wait_for 60 cinder-nbd --config /tmp/bed.toml status || fail "the daemon does not answer: $(cat "$OUT/daemon.log")"
  device=$(cinder-nbd --config /tmp/bed.toml attach --portal $PORTAL --target $IQN --lun 0) || fail "attach: $(tail -n 5 "$OUT/daemon.log")"
  device=${device#/dev/}
}
way_qemu() {
  device=nbd15
  QEMU_MODULE_DIR=/job/host/qemu LD_LIBRARY_PATH=/job/host qemu-nbd --persistent --format=raw --cache=none --aio=threads -c /dev/$device \
    "iscsi://$PORTAL/$IQN/0" >"$OUT/qemu-nbd.log" 2>&1 &
  at_end 'qemu-nbd -d /dev/nbd15 >/dev/null'
}
for way in $WAYS; do
  way_$way
  wait_for 30 sized $device || fail "$way: no device: $(cat "$OUT"/*.log)"
  eval "device_$way=$device"
  { echo "way $way"; for file in max_sectors_kb nr_requests scheduler rotational; do echo "$file $(cat /sys/block/$device/queue/$file)"; done; } >>"$OUT/ways"
  say "$way is /dev/$device"
done

# --- the measurements
# threads: nanoseconds on the processor, process, thread and name of each; shell's own words only, so that looking costs little
threads() {
  for thread in /proc/[0-9]*/task/[0-9]*; do
    process=${thread#/proc/}
    read -r name <"$thread/comm" && read -r spent _ <"$thread/schedstat" && echo "$spent ${process%%/*} ${thread##*/} $name"
  done 2>/dev/null
}
# run NAME DEVICE FILE [N]: one job of fio
run() {
  case $1 in
    rr*) what="--rw=randread --bs=4k --number_ios=${4:-$IOS}" ;;
    rw*) what="--rw=randwrite --bs=4k --number_ios=${4:-$IOS}" ;;
    sr) what="--rw=read --bs=1m --number_ios=${4:-$MIB}" ;;
    sw) what="--rw=write --bs=1m --number_ios=${4:-$MIB}" ;;
  esac
  case $1 in *32) depth=32 ;; s*) depth=4 ;; *) depth=1 ;; esac
  fio --name=$1 --filename=/dev/$2 $what --iodepth=$depth --ioengine=libaio --direct=1 --thread --norandommap --randrepeat=1 \
    --size=$((DISK_MIB - 1))m --output-format=json --output="$3" || fail "fio: $1 on $2: $(cat "$3")"
}
for way in $WAYS; do
  eval "device=\$device_$way"
  run rw32 $device /tmp/warm.json 500
  run rr32 $device /tmp/warm.json 500
done
round=1
while [ $round -le $ROUNDS ]; do
  for job in $JOBS; do
    for way in $WAYS; do
      eval "device=\$device_$way"
      at="$OUT/$round.$job.$way"
      threads >"$at.before"
      run $job $device "$at.json"
      threads >"$at.after"
    done
    say "round $round: $job"
  done
  round=$((round + 1))
done

# --- where the time goes, function by function
if [ -n "$PROFILE" ]; then
  echo 0 >/proc/sys/kernel/kptr_restrict
  echo -1 >/proc/sys/kernel/perf_event_paranoid
  for job in $PROFILE; do
    for way in $WAYS; do
      eval "device=\$device_$way"
      perf record -q -a -g -e cpu-clock -F 4999 -o /tmp/perf.data -- fio --name=$job --filename=/dev/$device \
        --rw=$(case $job in rr*) echo randread ;; rw*) echo randwrite ;; sr) echo read ;; sw) echo write ;; esac) \
        --bs=$(case $job in s*) echo 1m ;; *) echo 4k ;; esac) --number_ios=$(case $job in s*) echo $MIB ;; *) echo $IOS ;; esac) \
        --iodepth=$(case $job in *32) echo 32 ;; s*) echo 4 ;; *) echo 1 ;; esac) --ioengine=libaio --direct=1 --thread --norandommap \
        --size=$((DISK_MIB - 1))m >/dev/null 2>"$OUT/perf.err"
      perf report -i /tmp/perf.data --no-children -g none --sort comm,dso,symbol --stdio 2>/dev/null | grep -v '^#' | head -n 150 >"$OUT/profile.$job.$way"
      perf report -i /tmp/perf.data --no-children -g none --sort comm --stdio 2>/dev/null | grep -v '^#' | head -n 20 >"$OUT/comm.$job.$way"
      perf report -i /tmp/perf.data --children -g none --sort symbol --comm cinder-nbd --stdio 2>/dev/null | grep -v '^#' | head -n 120 >"$OUT/children.$job.$way"
    done
  done
fi
say "done"
