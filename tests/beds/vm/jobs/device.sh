# What surrounds the kernel's device: queue settings, read-only, growth; then udev with our rule.
. bed/lib.sh
export CINDER_NBD_IN_VM=1 RUST_BACKTRACE=1
nbd_kernel_queue --test-threads=1 --show-output --skip udev_
status=$?
mkdir -p /etc/udev/rules.d
cp 60-cinder-nbd.rules /etc/udev/rules.d/
if udevadm verify --help >/dev/null 2>&1; then udevadm verify /etc/udev/rules.d/60-cinder-nbd.rules || status=1; fi
/lib/systemd/systemd-udevd --daemon || fail "udevd does not start"
udevadm settle || fail "udev does not settle"
CINDER_NBD_UDEV=1 nbd_kernel_queue --test-threads=1 --show-output udev_ || status=1
[ -z "$(nbd_left)" ] || fail "devices are still connected: $(ls -d /sys/block/nbd*/pid)"
exit $status
