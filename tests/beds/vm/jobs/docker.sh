# What moby's own tests ask of an external volume driver, and what its issues tell of, against a real engine: mount IDs,
# starts that fail, cp, slow mounts, either side killed, refusals, a cloud that is away. Then Podman on the same socket.
# Against the stand-in inside the guest. Each line `ok: ...` is a test.
# Source: moby `integration-cli/docker_cli_external_volume_driver_test.go`; the engine's issues 34665, 37314, 37834, 47964.
. bed/lib.sh
settle=60
mounts_dir=/var/lib/cinder-nbd/mnt
mkfifo /tmp/faults
demo serve --environment /tmp/cloud.env --faults /tmp/faults >"$OUT/cloud.log" 2>&1 &
wait_for 60 test -s /tmp/cloud.env || { cat "$OUT/cloud.log"; fail "the stand-in did not start"; }
. /tmp/cloud.env
cloud_port=$(echo "$OS_AUTH_URL" | sed 's/.*:\([0-9]*\)\/.*/\1/')
cat >/tmp/bed.toml <<TOML
runtime_dir = "/run/cinder-nbd"
state_dir = "/var/lib/cinder-nbd"
TOML
cli() { cinder-nbd --config /tmp/bed.toml "$@"; }
cinder-nbd --config /tmp/bed.toml supervise >"$OUT/daemon.log" 2>&1 &
supervisor=$!
at_end 'tail -n 40 "$OUT/daemon.log"'
daemon() { pgrep -P $supervisor | head -n 1; }
# nobody here has a network: each start of the engine is 5 s shorter. Containers say so too, or the engine keeps their
# network's leftovers and clears them one by one when it starts again
alone='--bridge none --iptables=false'
docker_up $alone || fail "no Docker engine"
docker_image || fail "docker import"
wait_for 60 test -S /run/docker/plugins/cinder.sock || fail "the daemon does not listen"

# create VOLUME
create() { docker volume create -d cinder -o size=1 -o fstype=ext4 "$1" >/dev/null || fail "docker volume create $1"; }
# holds CONTAINER VOLUME: a container that has the volume and does nothing; none waits for it to end in its own time
holds() {
  docker run -d --network none --stop-timeout 1 --name "$1" -v "$2:/data" bed sleep 600 >/dev/null || fail "container $1"
}
# how the engine and the cloud see a volume
status() { docker volume inspect -f "{{.Status.$2}}" "$1"; }
state_is() { [ "$(cli volume show "$1" --json | tr -d '\n' | field status)" = "$2" ]; }
runs() { [ "$(docker inspect -f '{{.State.Running}}' "$1")" = "$2" ]; }
is_once() { [ "$(grep -c "^/dev/nbd[0-9]* $mounts_dir/$1 " /proc/mounts)" = 1 ]; }
is_away() { state_is "$1" available && ! grep -q " $mounts_dir/$1 " /proc/mounts && ! cli list --json | grep -q /dev/nbd; }
away() { wait_for $settle is_away "$1" || fail "$2: $1 is not taken off: $(cli volume show "$1" --json; cli list; nbd_left)"; }
# mounts_are VOLUME COUNT
mounts_are() { [ "$(status "$1" mounts)" = "$2" ] || fail "$(status "$1" mounts) mounts of $1 are counted in place of $2"; }
# plugin METHOD BODY: a call as the engine makes it, without the engine
plugin() {
  perl -MIO::Socket::UNIX -e 'my ($m, $b) = @ARGV; my $s = IO::Socket::UNIX->new("/run/docker/plugins/cinder.sock") or die $!;
    print $s "POST /$m HTTP/1.0\r\nContent-Length: " . length($b) . "\r\n\r\n$b"; print <$s>' "$1" "$2"
}

# --- created once
create v1
create v1
plugin VolumeDriver.Create '{"Name":"v1","Opts":{"size":"1"}}' >/tmp/answer
grep -q '^HTTP/1.. 200' /tmp/answer || fail "Create twice: $(cat /tmp/answer)"
[ "$(cli volume list --json | grep -o '"name": *"v1"' | wc -l)" = 1 ] || fail "not one volume: $(cli volume list)"
ok "a volume is created once, however often it is asked for"
docker volume create -d local v1 >/tmp/refused 2>&1 && fail "one name for two drivers"
grep -q "v1.*cinder" /tmp/refused || fail "the clash is not told: $(cat /tmp/refused)"
docker volume create -d local l1 >/dev/null || fail "docker volume create -d local"
docker volume create -d cinder -o size=1 l1 >/tmp/refused 2>&1 && fail "one name for two drivers"
grep -q "l1.*local" /tmp/refused || fail "the clash is not told: $(cat /tmp/refused)"
cli volume list --json | grep -q '"l1"' && fail "a volume was made for a name that was refused"
docker volume rm l1 >/dev/null || fail "docker volume rm l1"
ok "a name is one driver's: $(cat /tmp/refused)"

# --- mount IDs
holds one v1
holds two v1
is_once v1 || fail "not mounted once: $(grep nbd /proc/mounts)"
mounts_are v1 2
docker exec one sh -c 'echo of a >/data/file && sync' && [ "$(docker exec two cat /data/file)" = "of a" ] || fail "they see two volumes"
docker rm -f one >/dev/null
mounts_are v1 1
docker exec two sh -c 'echo of b >>/data/file && sync' || fail "the first one's end took the volume from the second"
ok "two containers have one mount, and the first one's end leaves it"

# --- refused while it is used, and told why
docker volume rm v1 >/tmp/refused 2>&1 && fail "a volume in use was removed"
grep -q "$(docker inspect -f '{{.Id}}' two)" /tmp/refused || fail "the container is not named: $(cat /tmp/refused)"
ok "docker volume rm names the container: $(cat /tmp/refused)"
[ "$(docker volume inspect -f '{{.Scope}} {{.Driver}} {{.Mountpoint}}' v1)" = "global cinder $mounts_dir/v1" ] ||
  fail "inspect: $(docker volume inspect v1)"
docker volume inspect -f '{{.CreatedAt}}' v1 | grep -q '^20[0-9-]*T[0-9:]*Z$' || fail "CreatedAt: $(docker volume inspect v1)"
[ "$(status v1 state) $(status v1 size_gib) $(status v1 fstype)" = "mounted 1 ext4" ] || fail "Status: $(docker volume inspect v1)"
ok "docker volume inspect: Scope, Mountpoint, CreatedAt, Status"
docker rm -f two >/dev/null
away v1 "after the last container"
ok "after the last container it is taken off"

# --- a start that fails
docker run --rm --network none -v v1:/data bed /nonexistent >/tmp/refused 2>&1 && fail "a command that is not there ran"
grep -q nonexistent /tmp/refused || fail "another failure: $(cat /tmp/refused)"
away v1 "after a failed start"
ok "a start that fails leaves no mount"

# --- docker cp
dd if=/dev/urandom of=/tmp/in bs=64k count=16 2>/dev/null
holds copied v1
docker cp /tmp/in copied:/data/in || fail "docker cp into a running container"
docker cp copied:/data/in /tmp/out || fail "docker cp out of a running container"
cmp /tmp/in /tmp/out || fail "docker cp: other data"
is_once v1 || fail "docker cp took the mount: $(grep nbd /proc/mounts)"
mounts_are v1 1
docker exec copied sh -c '[ "$(cat /data/file)" ] && cat /data/in >/data/again && sync' || fail "after docker cp the container cannot use it"
ok "docker cp of a running container: its mount survives"
docker stop -t 0 copied >/dev/null
away v1 "after docker stop"
docker cp /tmp/in copied:/data/stopped || fail "docker cp into a stopped container"
rm /tmp/out
docker cp copied:/data/again /tmp/out || fail "docker cp out of a stopped container"
cmp /tmp/in /tmp/out || fail "docker cp: other data"
away v1 "after docker cp"
docker rm copied >/dev/null || fail "docker rm"
ok "docker cp of a stopped container: mounted for it, and taken off"

# --- a slow cloud
echo 'delay 6 1 PUT /attachments/{id}' >/tmp/faults
begun=$(cut -d. -f1 /proc/uptime)
docker run --rm --network none -v v1:/data bed cat /data/stopped >/tmp/out || fail "a slow Mount"
[ $(($(cut -d. -f1 /proc/uptime) - begun)) -ge 6 ] || fail "it was not slow"
cmp /tmp/in /tmp/out || fail "what was copied into the stopped container is not in the volume"
away v1 "after a slow Mount"
ok "the engine waits for a slow Mount"

# --- the daemon restarted in order, and killed
create v2
writes_to v1 w1
writes_to v2 w2
# whole VOLUME: its records are there one after the other; count of them
whole() { awk '$1 != NR { exit 1 } END { if (!NR) exit 1; print NR }' "$mounts_dir/$1/records"; }
grows() { [ "$(whole v1)" -gt "$before1" ] && [ "$(whole v2)" -gt "$before2" ]; }
write_on() {
  before1=$(whole v1) && before2=$(whole v2) || fail "$1: a record is missing"
  wait_for 120 grows || fail "$1: nothing is written: $(cli list)"
  runs w1 true && runs w2 true || fail "$1: a write failed"
}
wait_for 60 whole v1 && wait_for 60 whole v2 || fail "the containers do not write"
old=$(daemon)
kill -HUP $supervisor
is_new() { [ -n "$(daemon)" ] && [ "$(daemon)" != "$old" ] && cli status; }
wait_for 60 is_new || fail "no new daemon"
write_on "after a restart"
mounts_are v1 1
ok "the daemon restarted: both containers write on"
old=$(daemon)
kill -9 "$old"
docker volume ls --format '{{.Driver}} {{.Name}}' >/tmp/listed || fail "docker volume ls"
[ "$(grep -c '^cinder v[12]$' /tmp/listed)" = 2 ] || fail "docker volume ls: $(cat /tmp/listed)"
wait_for 60 is_new || fail "no new daemon"
write_on "after kill -9"
mounts_are v1 1
mounts_are v2 1
ok "the daemon killed: both containers write on, Docker lists and inspects"
for v in 1 2; do
  docker exec w$v sh -c 'echo >/data/stop' || fail "docker exec"
  [ "$(docker wait w$v)" = 0 ] || fail "a write of w$v failed"
  docker rm w$v >/dev/null
done
away v2 "after its writer"
docker volume rm v2 >/dev/null || fail "docker volume rm v2"
away v1 "after its writer"

# --- the engine killed
restart_engine() { wait $engine 2>/dev/null; dockerd_up $alone "$@" || fail "no engine again"; }
holds kept v1
kill -9 $engine
restart_engine
wait_for 60 runs kept false || fail "without live-restore the container runs on"
docker start kept >/dev/null || fail "docker start after the engine was killed"
[ "$(docker exec kept cat /data/file | wc -l)" = 2 ] || fail "other data"
is_once v1 || fail "not mounted once: $(grep nbd /proc/mounts)"
mounts_are v1 1
docker stop -t 0 kept >/dev/null
away v1 "after the engine was killed, the container started again and stopped"
ok "the engine killed: the container's mount is counted once when it starts again"
docker start kept >/dev/null || fail "docker start"
kill -9 $engine
restart_engine --live-restore
runs kept true || fail "with live-restore the container has ended"
mounts_are v1 1
docker exec kept sh -c 'echo on >>/data/file && sync' || fail "with live-restore the volume is lost"
docker stop -t 0 kept >/dev/null
away v1 "after live-restore"
ok "the engine killed, with live-restore: the container keeps the volume until it stops"
docker start kept >/dev/null || fail "docker start"
kill -9 $engine
restart_engine
wait_for 60 runs kept false || fail "without live-restore the container runs on"
docker rm kept >/dev/null || fail "docker rm kept"
docker volume rm v1 >/tmp/refused 2>&1 || fail "docker volume rm after the engine was killed: $(cat /tmp/refused)"
[ -z "$(docker volume ls -q)" ] || fail "docker still lists: $(docker volume ls -q)"
ok "the engine killed, the container removed: the volume can be removed"

# --- no cloud
create v1
holds kept v1
docker rm -f kept >/dev/null
away v1 "after its container"
for target in DROP REJECT; do
  iptables -I OUTPUT -p tcp --dport "$cloud_port" -j $target || fail "iptables $target"
  timeout 20 docker volume ls --format '{{.Driver}} {{.Name}}' | grep -qx 'cinder v1' || fail "$target: docker volume ls"
  [ "$(timeout 20 docker volume inspect -f '{{.Scope}} {{.Status.state}}' v1)" = "global detached" ] || fail "$target: docker volume inspect"
  if [ $target = REJECT ]; then
    docker run --rm --network none -v v1:/data bed cat /data/file >/tmp/refused 2>&1 && fail "mounted without a cloud"
  fi
  iptables -D OUTPUT -p tcp --dport "$cloud_port" -j $target
done
ok "without a cloud Docker lists and inspects, and a container is told: $(grep -v '^See' /tmp/refused)"
holds kept v1
is_once v1 || fail "the cloud is back, the volume is not"
ok "with the cloud the volume is back"
kill -TERM $engine
wait $engine
away v1 "after the engine's end"
ok "the engine ended in order: the volume is taken off"

# --- Podman
mkdir -p /etc/containers
cat >/etc/containers/containers.conf <<TOML
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
# the emulated processor is slower than podman's 5 s allow for
volume_plugin_timeout = 60
[engine.volume_plugins]
cinder = "/run/docker/plugins/cinder.sock"
TOML
sed 's/^volume_plugin_timeout.*/volume_plugin_timeout = 3/' /etc/containers/containers.conf >/tmp/hasty.conf
podman import -c 'ENV PATH=/bin' /tmp/image.tar bed >/dev/null 2>"$OUT/podman.err" || fail "podman import: $(cat "$OUT/podman.err")"
in_podman() { podman run --rm --network none -v "$1:/data" bed sh -c "$2"; }
podman volume create --driver cinder --opt size=1 --opt fstype=ext4 p1 >/dev/null || fail "podman volume create"
in_podman p1 'echo by podman >/data/file && sync' || fail "podman run"
away p1 "after podman run"
[ "$(in_podman p1 'cat /data/file')" = "by podman" ] || fail "podman reads other data"
away p1 "after podman run"
[ "$(podman volume inspect -f '{{.Driver}}' p1)" = cinder ] || fail "podman volume inspect: $(podman volume inspect p1)"
ok "podman $(podman version -f '{{.Client.Version}}'): data stays, and the volume is taken off"
podman create --name first --network none -v p1:/data bed sleep 600 >/dev/null && podman start first >/dev/null || fail "podman start"
podman volume rm p1 >/tmp/refused 2>&1 && fail "podman removed a volume in use"
[ "$(in_podman p1 'cat /data/file')" = "by podman" ] || fail "a second container of podman"
podman exec first cat /data/file >/dev/null || fail "the second one's end took the volume from the first"
podman rm -f -t 0 first >/dev/null || fail "podman rm"
away p1 "after podman's containers"
ok "podman: two containers have one mount, until the last"
# as a caller that gives up does: podman does so after 5 s
echo 'delay 8 1 PUT /attachments/{id}' >/tmp/faults
CONTAINERS_CONF=/tmp/hasty.conf in_podman p1 'cat /data/file' >/tmp/refused 2>&1 && fail "podman was to give up"
[ "$(in_podman p1 'cat /data/file')" = "by podman" ] || fail "after a Mount that was given up"
away p1 "after a Mount that was given up"
ok "a caller that gives up a slow Mount: the next one has it, and it is taken off: $(tail -n 1 /tmp/refused)"
podman volume rm p1 >/dev/null || fail "podman volume rm"
ok "podman volume rm"

# --- nothing left
cli volume delete v1 || fail "volume delete v1"
cli volume list --json | grep -q '"id"' && fail "volumes are left: $(cli volume list --json)"
[ -z "$(nbd_left)" ] || fail "a device is still connected"
grep -q /dev/nbd /proc/mounts && fail "a mount is left: $(grep /dev/nbd /proc/mounts)"
find /var/lib/cinder-nbd/attachments -type f | grep -q . && fail "the journal is not empty"
kill -TERM $supervisor
wait $supervisor || fail "the daemon ended with status $?"
ok "no volume, no attachment, no device, no mount is left"
ends=
