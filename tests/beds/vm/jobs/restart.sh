# A daemon that is killed again and again beneath a filesystem and a fio that verifies, on the kernel's own iSCSI target.
# `rounds` and `planned` may come from the job's settings. Each line `ok: ...` is a test.
. bed/lib.sh
rounds=${RESTART_ROUNDS:-50}
planned=${RESTART_PLANNED:-5}
iqn=iqn.2026-11.test.lio:restart
now() { cut -d' ' -f1 /proc/uptime; }

# --- a target with CHAP and two LUNs: one for fio, one for a filesystem
lio_up || fail "the guest's kernel has no LIO"
lio_lun restart 0 64 && lio_lun restart 1 128 && lio_open restart me a-long-secret-of-the-bed || fail "LIO refuses the target"
(umask 077; printf %s a-long-secret-of-the-bed >/tmp/chap)

# --- the daemon beneath its supervisor
cat >/tmp/bed.toml <<TOML
runtime_dir = "/run/cinder-nbd"
state_dir = "/var/lib/cinder-nbd"
lanes = 2
TOML
cli() { cinder-nbd --config /tmp/bed.toml "$@"; }
cinder-nbd --config /tmp/bed.toml supervise >"$OUT/daemon.log" 2>&1 &
supervisor=$!
at_end 'tail -n 40 "$OUT/daemon.log"'
daemon() { pgrep -P $supervisor | head -n 1; }
wait_for 60 cli status || fail "the daemon does not answer"
attach() {
  cli attach --portal 127.0.0.1:3260 --target $iqn --lun "$1" --chap-user me --chap-secret-file /tmp/chap --json |
    tr -d '\n' | field device
}
raw=$(attach 0)
disk=$(attach 1)
[ -b "$raw" ] && [ -b "$disk" ] || fail "attach gave no devices: '$raw' '$disk'"
ok "attached $raw and $disk, two lanes each, by CHAP"
mkfs.ext4 -q "$disk" || fail "mkfs"
mkdir -p /mnt/records
mount "$disk" /mnt/records || fail "mount"

# --- work that never stops: fio writes all of its device in random order and verifies it, over and over
(
  while [ ! -e /tmp/stop ]; do
    fio --name=verify --filename="$raw" --rw=randwrite --bs=4k --size=16M --ioengine=libaio --iodepth=16 --direct=1 \
      --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed="$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')" \
      --output=/tmp/fio.out >/dev/null 2>&1 || { cp /tmp/fio.out "$OUT/fio.failed"; echo failed >>/tmp/fio.failed; exit; }
    echo pass >>/tmp/fio.passes
  done
) &
fio=$!
# records: appended, synced, and only then acknowledged
(
  i=0
  while [ ! -e /tmp/stop ]; do
    i=$((i + 1))
    printf '%063d\n' $i | dd of=/mnt/records/log oflag=append conv=notrunc,fsync 2>/tmp/dd.err ||
      { cp /tmp/dd.err "$OUT/writer.failed"; echo failed >>/tmp/writer.failed; exit; }
    echo "$i $(now)" >>/tmp/acks
  done
) &
writer=$!
acks() { wc -l </tmp/acks; }
# more N: N more records are acknowledged
more() { more_end=$(($(acks) + $1)); wait_for 120 eval '[ "$(acks)" -ge $more_end ]'; }
sane() { [ ! -e /tmp/fio.failed ] && [ ! -e /tmp/writer.failed ]; }
# a random pause: up to so many hundredths of a second
doze() { busybox usleep $(($(od -An -N2 -tu2 /dev/urandom) % $1 * 10000)); }
# longest FILE: the longest gap between two acknowledged records of each round that FILE begins, in ms, sorted
longest() {
  awk 'NR == FNR { at[NR] = $1; n = NR; next }
    { t = $2; if (FNR > 1) { for (r = n; r > 0; r--) if (t >= at[r]) { if (t - last > gap[r]) gap[r] = t - last; break } } last = t }
    END { for (r = 1; r <= n; r++) printf "%d\n", gap[r] * 1000 }' "$1" /tmp/acks | sort -n
}
# told WHAT FILE: the figures of it
told() {
  longest "$2" >"$OUT/pauses.$1"
  awk -v what="$1" '{ v[NR] = $1 } END { printf "figure: %s: %d rounds, longest pause of the writer: median %d ms, worst %d ms\n",
    what, NR, v[int((NR + 1) / 2)], v[NR] }' "$OUT/pauses.$1"
}
wait_for 60 test -s /tmp/acks || fail "the writer does not write"
# what the writer needs without any fault
more 20 || fail "the writer stands still"
awk 'NR > 1 { g = $2 - last; if (g > worst) worst = g } { last = $2 } END { printf "figure: without a fault: %d records, longest pause %d ms\n", NR, worst * 1000 }' /tmp/acks

# --- killed at random moments
round=0
while [ $round -lt "$rounds" ]; do
  round=$((round + 1))
  wait_for 60 daemon || fail "no daemon in round $round"
  pid=$(daemon)
  echo "$(now)" >>/tmp/kills
  kill -9 "$pid" || fail "round $round: nobody to kill"
  # most rounds see it at work again, some are killed while they take over
  case $((round % 5)) in
    0) doze 60 ;;
    *) more 3 || fail "round $round: the writer stands still: $(cli list 2>&1)"; doze 100 ;;
  esac
  sane || fail "round $round: I/O failed"
done
more 10 || fail "after the last round the writer stands still"
sane || fail "I/O failed"
ok "$rounds times kill -9: no I/O error"
told killed /tmp/kills

# --- restarted in order
round=0
while [ $round -lt "$planned" ]; do
  round=$((round + 1))
  pid=$(daemon)
  echo "$(now)" >>/tmp/restarts
  kill -HUP $supervisor
  wait_for 60 eval '[ -n "$(daemon)" ] && [ "$(daemon)" != "$pid" ]' || fail "restart $round: no new daemon"
  more 5 || fail "restart $round: the writer stands still"
  sane || fail "restart $round: I/O failed"
done
ok "$planned times restarted in order: no I/O error"
told restarted /tmp/restarts

# --- everything is there
touch /tmp/stop
wait $writer
wait $fio
sane || fail "I/O failed at the end"
ok "fio verified its device $(wc -l </tmp/fio.passes) times, the writer had $(acks) records acknowledged"
dmesg >"$OUT/dmesg.restart"
grep -iE 'I/O error|EXT4-fs.*(error|warning)|aborting journal|lost page write' "$OUT/dmesg.restart" && fail "the kernel saw errors"
umount /mnt/records || fail "umount"
e2fsck -fn "$disk" >"$OUT/e2fsck" 2>&1 || fail "e2fsck: $(tail -n 3 "$OUT/e2fsck")"
mount "$disk" /mnt/records || fail "mount again"
last=$(tail -n 1 /tmp/acks | cut -d' ' -f1)
# without its zeroes: busybox's awk takes a number that begins with one for octal
awk -v last="$last" '{ sub(/^0+/, "", $1) } $1 != NR { print "record", NR, "is", $1; exit 1 } END { if (NR < last) { print NR, "of", last; exit 1 } }' \
  /mnt/records/log >/tmp/judged || fail "an acknowledged record is lost: $(cat /tmp/judged)"
umount /mnt/records
ok "no kernel error, fsck clean, every acknowledged record is there"
cli detach --all || fail "detach --all"
[ -z "$(nbd_left)" ] || fail "a device is still connected"
kill -TERM $supervisor
wait $supervisor || fail "the supervisor ended with status $?"
[ -z "$(pgrep cinder-nbd)" ] || fail "a daemon is left"
ok "detach --all and SIGTERM end it in order"
ends=
