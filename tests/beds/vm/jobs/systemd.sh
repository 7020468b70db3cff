# The unit as it is packaged, beneath a real systemd (a user manager of root, brought from the host: the guest has none):
# restart and crash under a mounted filesystem, with what systemd holds. Each line `ok: ...` is a test.
. bed/lib.sh
ok() { echo "ok: $* [$(cut -d' ' -f1 /proc/uptime)]"; }
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }
ends=
at_end() { ends="$1; $ends"; }
trap 'eval "$ends"' EXIT

# --- the manager, with the few targets that a service leans on
export XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME=/root/.config XDG_STATE_HOME=/var/lib/state
units=$XDG_CONFIG_HOME/systemd/user
mkdir -p -m 700 $XDG_RUNTIME_DIR $units $XDG_STATE_HOME /etc/cinder-nbd
for target in basic sysinit default shutdown sockets timers paths exit; do
  printf '[Unit]\nDefaultDependencies=no\n' >$units/$target.target
done
sed 's,/usr/sbin/cinder-nbd,/job/bin/cinder-nbd,' cinder-nbd.service >$units/cinder-nbd.service || fail "no unit"
cat >/etc/cinder-nbd/cinder-nbd.toml <<TOML
runtime_dir = "$XDG_RUNTIME_DIR/cinder-nbd"
state_dir = "$XDG_STATE_HOME/cinder-nbd"
lanes = 2
TOML
mkdir -p /sys/fs/cgroup/manager
sh -c 'echo $$ >/sys/fs/cgroup/manager/cgroup.procs; exec systemd --user --unit=basic.target --log-target=console' \
  >"$OUT/systemd.log" 2>&1 &
at_end 'tail -n 40 "$OUT/systemd.log"'
ctl() { systemctl --user "$@"; }
wait_for 60 ctl is-active basic.target || fail "no systemd here: $(ctl is-active basic.target 2>&1)"
ok "$(systemctl --version | head -n 1)"
wait_for 60 ctl start cinder-nbd || fail "the unit does not start: $(ctl status cinder-nbd 2>&1)"
property() { ctl show -P "$1" cinder-nbd; }
daemon() { property MainPID; }
[ "$(property StatusText)" = serving ] || fail "status: $(property StatusText)"
ok "the unit starts and says that it serves"

# --- a mounted volume
lio_up && lio_lun systemd 0 64 && lio_open systemd || fail "LIO refuses the target"
device=$(cinder-nbd attach --portal 127.0.0.1:3260 --target iqn.2026-11.test.lio:systemd --lun 0 --json | tr -d '\n' | field device)
[ -b "$device" ] || fail "attach gave no device: $device"
mkfs.ext4 -q "$device" && mkdir -p /mnt/s && mount "$device" /mnt/s || fail "mount"
held() { property NFileDescriptorStore; }
[ "$(held)" -ge 2 ] || fail "systemd holds $(held) descriptors"
ok "systemd holds $(held) descriptors of two lanes"
( i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); echo $i | dd of=/mnt/s/log oflag=append conv=notrunc,fsync 2>/dev/null || exit; echo $i >>/tmp/acks; done ) &
writer=$!
more() { more_end=$(($(wc -l </tmp/acks) + $1)); wait_for 60 eval '[ "$(wc -l </tmp/acks)" -ge $more_end ]'; }
wait_for 60 test -s /tmp/acks || fail "the writer does not write"
for round in 1 2 3; do
  before=$(daemon)
  ctl restart cinder-nbd || fail "restart"
  [ "$(daemon)" != "$before" ] || fail "the same daemon"
  more 5 || fail "after restart $round the writer stands still: $(cinder-nbd list)"
done
ok "systemctl restart, three times: the writer goes on"
for round in 1 2 3; do
  before=$(daemon)
  kill -9 "$before"
  wait_for 60 eval '[ "$(daemon)" != 0 ] && [ "$(daemon)" != $before ]' || fail "no new daemon"
  more 5 || fail "after crash $round the writer stands still: $(cinder-nbd list)"
done
ok "kill -9, three times: the writer goes on"
touch /tmp/stop
wait $writer
umount /mnt/s || fail "umount"
wait_for 60 cinder-nbd status || fail "no daemon"
cinder-nbd detach --all || fail "detach --all"
[ "$(held)" = 0 ] || fail "systemd still holds $(held) descriptors"
ctl stop cinder-nbd || fail "stop"
[ -z "$(nbd_left)" ] || fail "a device is still connected"
ok "detached and stopped: systemd holds nothing"
ends=
ctl exit
