# A user's day: volumes by the command line, then by a real Docker engine. Against the stand-in inside the guest,
# or, when the job brings cloud.env, against a real Cinder on the host. Each line `ok: ...` is a test.
. bed/lib.sh
ok() { echo "ok: $* [$(cut -d' ' -f1 /proc/uptime)]"; }
ends=
at_end() { ends="$1; $ends"; }
trap 'eval "$ends"' EXIT
# the value of a field in a line of JSON
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

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
docker run -d --name writer -v v1:/data bed sh -c \
  'i=0; while [ ! -e /data/stop ]; do i=$((i + 1)); echo $i >>/data/records && sync || exit 1; done' >/dev/null ||
  fail "a container that writes"
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
