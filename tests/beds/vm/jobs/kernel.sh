# The kernel's device: the test program that needs one, here where its absence is a failure.
. bed/lib.sh
uname -r
export CINDER_NBD_IN_VM=1 RUST_BACKTRACE=1
nbd_kernel --test-threads=1 --show-output
status=$?
[ -z "$(nbd_left)" ] || fail "devices are still connected: $(ls -d /sys/block/nbd*/pid)"
exit $status
