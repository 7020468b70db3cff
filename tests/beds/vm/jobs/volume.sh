# A user's day: volumes by the command line, then by a real Docker engine. Against the stand-in inside the guest,
# or, when the job brings cloud.env, against a real Cinder on the host. Each line `ok: ...` is a test.
. bed/lib.sh

# --- the cloud
if [ -e cloud.env ]; then
  # whatever the guest calls its loopback is the host's: the catalog and the portals say 127.0.0.1
  modprobe -q iptable_nat
  for part in all lo eth0; do echo 1 >/proc/sys/net/ipv4/conf/$part/route_localnet; done
  iptables -t nat -A OUTPUT -p tcp -d 127.0.0.0/8 -j DNAT --to-destination 10.0.2.2
  iptables -t nat -A POSTROUTING -p tcp -o eth0 -j MASQUERADE
  . ./cloud.env
  settle=120
else
  demo serve --environment /tmp/cloud.env >"$OUT/cloud.log" 2>&1 &
  wait_for 60 test -s /tmp/cloud.env || { cat "$OUT/cloud.log"; fail "the stand-in did not start"; }
  . /tmp/cloud.env
  settle=30
fi

# --- the daemon
cat >/tmp/bed.toml <<TOML
runtime_dir = "/run/cinder-nbd"
state_dir = "/var/lib/cinder-nbd"
TOML
cli() { cinder-nbd --config /tmp/bed.toml "$@"; }
cli volume list --json >/tmp/before.json || fail "the cloud cannot be asked"
grep -q '"id"' /tmp/before.json && fail "the cloud is not empty: $(cat /tmp/before.json)"
# not through the function: its shell would stand between us and the daemon's supervisor
cinder-nbd --config /tmp/bed.toml supervise >"$OUT/daemon.log" 2>&1 &
supervisor=$!
at_end 'tail -n 30 "$OUT/daemon.log"'
wait_for 60 test -S /run/docker/plugins/cinder.sock || fail "the daemon does not listen"
ok "the daemon listens"

state_is() { [ "$(cli volume show "$1" --json | tr -d '\n' | field status)" = "$2" ]; }

# --- by hand
cli volume create hand --size 1 --json >/tmp/hand.json || fail "volume create"
state_is hand available || fail "not available: $(cli volume show hand --json)"
ok "volume create: available"
attach() {
  device=$(cli attach hand --json | tr -d '\n' | field device)
  [ -b "$device" ] || fail "attach gave no device: $device"
}
attach
state_is hand in-use || fail "not in-use: $(cli volume show hand --json)"
[ "$(blockdev --getsize64 "$device")" = 1073741824 ] || fail "size of $device"
ok "attach: $device, in-use, 1 GiB"
cli list --json | grep -q "$device" || fail "list does not show $device"
ok "list names the device"
mkfs.ext4 -q "$device" || fail "mkfs"
mkdir -p /mnt/hand
mount "$device" /mnt/hand || fail "mount"
dd if=/dev/urandom of=/mnt/hand/file bs=1M count=16 conv=fsync 2>/dev/null || fail "write"
sum=$(sha256sum </mnt/hand/file)
cli detach hand >/tmp/refused 2>&1 && fail "detach of a mounted device was not refused"
ok "detach of a mounted device is refused: $(cat /tmp/refused)"
umount /mnt/hand
cli detach hand || fail "detach"
state_is hand available || fail "not available after detach: $(cli volume show hand --json)"
[ -z "$(nbd_left)" ] || fail "a device is still connected"
ok "detach: available, no device"
attach
mount "$device" /mnt/hand || fail "mount again"
[ "$(sha256sum </mnt/hand/file)" = "$sum" ] || fail "the data came back different"
umount /mnt/hand
e2fsck -fn "$device" >"$OUT/e2fsck" 2>&1 || fail "e2fsck: $(tail -n 3 "$OUT/e2fsck")"
cli detach "$device" || fail "detach by device"
ok "attached again: the data is the same, the file system clean"
cli volume format hand --fstype xfs >/tmp/refused 2>&1 && fail "what holds a filesystem was formatted"
grep -q "holds a ext4 filesystem" /tmp/refused || fail "the filesystem is not named: $(cat /tmp/refused)"
cli volume format hand --fstype xfs --destroy 'a ext4 filesystem' >/tmp/formatted || fail "volume format"
[ "$(cat /tmp/formatted)" = xfs ] || fail "volume format: $(cat /tmp/formatted)"
state_is hand available || fail "not available after volume format: $(cli volume show hand --json)"
attach
[ "$(blkid -p -s TYPE -o value "$device")" = xfs ] || fail "no xfs: $(blkid -p "$device")"
cli detach hand || fail "detach"
ok "volume format: refused with the name of what is there, done when that is given"
cli volume delete hand || fail "volume delete"
ok "volume delete"

# --- by a real Docker engine
docker_up || fail "no Docker engine"
ok "Docker $(docker version --format '{{.Server.Version}}') answers"
docker_image || fail "docker import"
docker volume create -d cinder -o size=1 v1 >/dev/null || fail "docker volume create"
docker volume ls --format '{{.Driver}} {{.Name}}' | grep -qx 'cinder v1' || fail "docker volume ls: $(docker volume ls)"
ok "docker volume create"
docker run --rm -v v1:/data bed sh -c 'dd if=/dev/urandom of=/data/file bs=1M count=8 && sync && sha256sum </data/file' \
  >/tmp/written 2>"$OUT/run1.err" || fail "first container: $(cat "$OUT/run1.err")"
ok "a container writes"
state_is v1 available || fail "after the container v1 is not available: $(cli volume show v1 --json)"
ok "after the container the volume is available again"
docker run --rm -v v1:/data bed sh -c 'sha256sum </data/file' >/tmp/read 2>"$OUT/run2.err" || fail "second container: $(cat "$OUT/run2.err")"
cmp /tmp/written /tmp/read || fail "the second container reads something else"
ok "a second container reads the same"
writes_to v1 writer
written() { docker exec writer sh -c 'while read -r line; do last=$line; done </data/records; echo $last'; }
grows() { [ "$(written)" -gt "$before" ]; }
before=0
wait_for 60 grows || fail "the container does not write"
before=$(written)
kill -9 "$(pgrep -P $supervisor)" || fail "no daemon to kill"
docker volume ls --format '{{.Driver}} {{.Name}}' >/tmp/listed 2>&1
wait_for 120 grows || fail "after kill -9 of the daemon the container does not write any more: $(cli list)"
wait_for 60 cli status || fail "no new daemon"
[ "$(docker inspect -f '{{.State.Running}}' writer)" = true ] || fail "the container has ended"
docker volume ls --format '{{.Driver}} {{.Name}}' | grep -qx 'cinder v1' || fail "docker volume ls: $(docker volume ls)"
ok "kill -9 of the daemon: the container goes on writing"
docker exec writer sh -c 'echo >/data/stop' || fail "docker exec"
[ "$(docker wait writer)" = 0 ] || fail "the container's writes failed"
docker rm writer >/dev/null || fail "docker rm writer"
wait_for 60 state_is v1 available || fail "after the container v1 is not available: $(cli volume show v1 --json)"
ok "the new daemon counts the container's mount and takes the volume off after it"
docker run -d --name holder -v v1:/data bed sleep 600 >/dev/null || fail "third container"
docker volume rm v1 >/tmp/refused 2>&1 && fail "a volume in use was removed"
ok "docker volume rm of a volume in use is refused"
docker rm -f holder >/dev/null || fail "docker rm"
docker volume rm v1 >/dev/null || fail "docker volume rm"
[ -z "$(docker volume ls -q)" ] || fail "docker still lists: $(docker volume ls -q)"
ok "docker volume rm"
docker volume create -d cinder -o colour=red v2 >/tmp/refused 2>&1 && fail "an unknown option was taken"
ok "an unknown option is refused: $(cat /tmp/refused)"

# --- growth and snapshots of what a container uses
docker volume create -d cinder -o size=1 -o fstype=ext4 g1 >/dev/null || fail "docker volume create g1"
writes_to g1 grower
room() { docker exec grower df -m /data | sed -n '$s/^ *[^ ]* *\([0-9]*\).*/\1/p'; }
cli volume extend g1 2 || fail "volume extend of what is used: $(cli list)"
[ "$(room)" -gt 1800 ] || fail "the container does not see the room: $(docker exec grower df -m /data)"
docker volume inspect g1 | grep -q '"filesystem_bytes"\|2 GiB\|"size' || fail "inspect: $(docker volume inspect g1)"
ok "volume extend: a running container has the room"
cli volume snapshot create g1 s1 --json >/tmp/s1.json || fail "volume snapshot create"
[ "$(field consistency </tmp/s1.json)" = filesystem ] || fail "the snapshot: $(cat /tmp/s1.json)"
ok "volume snapshot create: the filesystem is frozen meanwhile"
docker exec grower sh -c 'echo >/data/stop' || fail "docker exec"
[ "$(docker wait grower)" = 0 ] || fail "the container's writes failed"
docker rm grower >/dev/null || fail "docker rm grower"
docker volume create -d cinder -o snapshot_id="$(field id </tmp/s1.json)" g2 >/dev/null || fail "a volume of the snapshot"
docker run --rm -v g2:/data bed sh -c 'i=0; while read -r line; do i=$((i + 1)); [ "$line" = $i ] || exit 1; done </data/records
  [ $i -gt 0 ] && [ ! -e /data/stop ]' || fail "the snapshot's records are not whole"
ok "a volume of the snapshot has the records up to it, whole and in order"
wait_for $settle state_is g1 available || fail "g1: $(cli volume show g1 --json)"
docker volume rm g1 >/tmp/refused 2>&1 && fail "a volume with a snapshot was removed"
grep -q s1 /tmp/refused || grep -q "$(field id </tmp/s1.json)" /tmp/refused || fail "the snapshot is not named: $(cat /tmp/refused)"
cli volume snapshot delete s1 || fail "volume snapshot delete"
docker volume rm g1 g2 >/dev/null || fail "docker volume rm g1 g2"
ok "a volume with a snapshot is not removed before it"

# --- two hosts: another daemon with another name, for one volume under each policy
cat >/tmp/other.toml <<TOML
driver = "second"
host = "other"
# what a host does whose volume was taken: its I/O fails after this
replacement_timeout = 5
TOML
other() { cinder-nbd --config /tmp/other.toml "$@"; }
cinder-nbd --config /tmp/other.toml daemon >"$OUT/other.log" 2>&1 &
second=$!
at_end 'tail -n 30 "$OUT/other.log"'
wait_for 60 other status || fail "no second daemon"
docker volume create -d second -o size=1 s2 >/dev/null || fail "docker volume create -d second"
docker run --rm -v s2:/data bed sh -c 'echo two >/data/file && sync' || fail "a container with a volume of the second driver"
cli list --json | grep -q s2 && fail "the first daemon has the second one's volume"
docker volume rm s2 >/dev/null || fail "docker volume rm s2"
ok "two daemons on a host serve a driver each"
cli volume create fought --size 1 >/dev/null || fail "volume create fought"
cli attach fought >/dev/null || fail "attach fought"
other attach fought >/tmp/refused 2>&1 && fail "a volume that another host has was attached"
grep -q "$(hostname)" /tmp/refused && grep -q since /tmp/refused || fail "the holder is not named: $(cat /tmp/refused)"
ok "refuse: $(cat /tmp/refused)"
other attach fought --elsewhere wait=2 >/tmp/refused 2>&1 && fail "waiting in vain succeeded"
(sleep 3; cli detach fought) &
other attach fought --elsewhere wait=60 >/tmp/device || fail "wait: not attached when it was free"
wait $!
ok "wait: attached when the other host had let go: $(cat /tmp/device)"
if cli attach fought --elsewhere take >/tmp/taken 2>&1; then
  ok "take: the LUN was fenced"
  dd if=/dev/zero of="$(cat /tmp/device)" bs=4096 count=1 oflag=direct 2>/dev/null && fail "the fenced host still writes"
  ok "take: the host it was taken from writes no more"
else
  grep -q fenced /tmp/taken || fail "take: $(cat /tmp/taken)"
  ok "take is refused where the LUN cannot be fenced: $(cat /tmp/taken)"
  cli attach fought --elsewhere take-without-fence >/tmp/taken || fail "take-without-fence"
  ok "take-without-fence: $(cat /tmp/taken)"
fi
dd if=/dev/urandom of="$(tail -n 1 /tmp/taken)" bs=1M count=1 oflag=direct 2>/dev/null || fail "the new holder cannot write"
other detach fought --force >/tmp/refused 2>&1
state_is fought in-use || fail "the end of the old holder ended the new one: $(cli volume show fought --json)"
ok "the old holder's detach leaves the new one attached"
cli detach fought || fail "detach fought"
wait_for $settle state_is fought available || fail "fought: $(cli volume show fought --json)"
kill -TERM $second
wait $second || fail "the second daemon ended with status $?"
cli volume delete fought || fail "volume delete fought"
ok "after it all the volume is free"

# --- one volume on two hosts at once, of a type that allows it
if cli volume create both --size 1 --type ${CINDER_NBD_REAL_SHARED_TYPE:-multi} >/dev/null 2>/tmp/refused; then
  cinder-nbd --config /tmp/other.toml daemon >>"$OUT/other.log" 2>&1 &
  second=$!
  wait_for 60 other status || fail "no second daemon"
  cli attach both >/dev/null || fail "attach both"
  other attach both >/tmp/refused 2>&1 && fail "a second writer was let in without a word"
  ok "a second writer is refused: $(cat /tmp/refused)"
  other attach both --read-only >/tmp/device || fail "a second reader is refused"
  dd if=/dev/zero of="$(cat /tmp/device)" bs=4096 count=1 oflag=direct 2>/dev/null && fail "the reader writes"
  ok "a second reader is let in, and cannot write"
  other detach both || fail "detach of the reader"
  other attach both --raw >/tmp/device || fail "--raw is refused"
  ok "a second writer is let in on request"
  other detach both || fail "detach of the second writer"
  cli detach both || fail "detach both"
  wait_for $settle state_is both available || fail "both: $(cli volume show both --json)"
  cli volume delete both || fail "volume delete both"
  kill -TERM $second
  wait $second || fail "the second daemon ended with status $?"
else
  fail "no type for several hosts: $(cat /tmp/refused)"
fi

# --- nothing left
is_empty() { ! cli volume list --json | grep -q '"id"'; }
wait_for $settle is_empty || fail "volumes are left: $(cli volume list --json)"
[ -z "$(nbd_left)" ] || fail "a device is still connected"
grep -q /dev/nbd /proc/mounts && fail "a mount is left: $(grep /dev/nbd /proc/mounts)"
ok "no volume, no device, no mount is left"
kill -TERM $supervisor
wait $supervisor || fail "the daemon ended with status $?"
[ ! -e /run/docker/plugins/cinder.sock ] || fail "the daemon left its socket"
ok "SIGTERM ends the daemon in order"
ends=
