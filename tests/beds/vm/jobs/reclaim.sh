# A filesystem on our device in a guest that is short of memory, written to faster than it can be stored: the kernel can
# free memory only by writing to us. The target is on the host, outside of this guest's memory: $PORTAL, $TARGET.
# Each line `ok: ...` is a test.
. bed/lib.sh
. ./target.env
cat >/tmp/bed.toml <<TOML
runtime_dir = "/run/cinder-nbd"
state_dir = "/var/lib/cinder-nbd"
TOML
memory() { sed -n "s/^$1:[[:space:]]*\([0-9]*\) kB/\1/p" "${2:-/proc/meminfo}"; }
echo "memory: $(memory MemTotal) kB in all, $(memory MemAvailable) kB to be had"

cinder-nbd --config /tmp/bed.toml daemon >"$OUT/daemon.log" 2>&1 &
daemon=$!
trap 'tail -n 20 "$OUT/daemon.log"; kill $daemon 2>/dev/null' EXIT
wait_for 60 test -S /run/cinder-nbd/control.sock || fail "the daemon does not listen"
cli() { cinder-nbd --config /tmp/bed.toml "$@"; }
[ "$(cat /proc/$daemon/oom_score_adj)" -le -900 ] || fail "its score is $(cat /proc/$daemon/oom_score_adj)"
[ "$(memory VmLck /proc/$daemon/status)" -gt 0 ] || fail "no memory is locked"
ok "the daemon has locked its memory and is the last to be killed"
echo "resident without volumes: $(memory VmRSS /proc/$daemon/status) kB, locked $(memory VmLck /proc/$daemon/status) kB"

device=$(cli attach --portal "$PORTAL" --target "$TARGET" --lun 1) || fail "attach"
[ -b "$device" ] || fail "attach gave no device: $device"
echo "resident with one volume: $(memory VmRSS /proc/$daemon/status) kB"
mkfs.ext4 -q "$device" || fail "mkfs"
mkdir -p /mnt/v
mount "$device" /mnt/v || fail "mount"

# Whoever asks for memory now: a buffer of a third of all, touched again and again.
total=$(memory MemTotal)
hog=$((total / 3))
( while :; do dd if=/dev/zero of=/dev/null bs=${hog}k count=2 2>/dev/null; done ) &
hogs=$!
# Three writers, together four times the memory. Each writes its own 8 MiB of chance again and again: random numbers and
# checksums for all of it would be what is measured, on an emulated processor.
rounds=$((total * 4 / 3 / 1024 / 8))
for n in 1 2 3; do
  dd if=/dev/urandom of=/tmp/seed$n bs=1M count=8 2>/dev/null || fail "no seed"
done
for n in 1 2 3; do
  ( i=0; while [ $i -lt $rounds ]; do cat /tmp/seed$n || exit 1; i=$((i + 1)); done >/mnt/v/$n ) 2>"$OUT/writer$n" &
  eval "writer$n=\$!"
done
for n in 1 2 3; do
  eval "wait \$writer$n" || fail "writer $n: $(cat "$OUT/writer$n")"
done
kill $hogs
ok "$((3 * 8 * rounds)) MiB written with $((total / 1024)) MiB of memory and $((hog / 1024)) MiB of it taken"
sync
echo 3 >/proc/sys/vm/drop_caches
for n in 1 2 3; do
  i=0
  while [ $i -lt $rounds ]; do
    dd if=/mnt/v/$n bs=8M skip=$i count=1 2>/dev/null | cmp -s - /tmp/seed$n || fail "file $n came back different at $((8 * i)) MiB"
    i=$((i + 1))
  done
done
ok "every byte came back"
kill -0 $daemon || fail "the daemon is dead"
echo "resident after it: $(memory VmRSS /proc/$daemon/status) kB, at most $(memory VmHWM /proc/$daemon/status) kB"
umount /mnt/v || fail "umount"
e2fsck -fn "$device" >"$OUT/e2fsck" 2>&1 || fail "e2fsck: $(tail -n 3 "$OUT/e2fsck")"
ok "the filesystem is clean"
cli detach "$device" || fail "detach"
dmesg | grep -iE 'blocked for more than|out of memory.*cinder-nbd|nbd.*(timed out|error)' && fail "the kernel complained"
ok "no task hung, and the daemon was not killed"
kill -TERM $daemon
wait $daemon || fail "the daemon ended with status $?"
trap - EXIT
