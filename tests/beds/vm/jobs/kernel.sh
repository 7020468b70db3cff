# The kernel's device and the command line on top of it: the test programs that need one, here where its absence is a failure.
. bed/lib.sh
uname -r
export CINDER_NBD_IN_VM=1 RUST_BACKTRACE=1
nbd_kernel --test-threads=1 --show-output
status=$?
CINDER_NBD_PROGRAM=$(command -v cinder-nbd) cli kernel:: filesystems:: frozen:: --test-threads=1 --show-output || status=1
[ -z "$(nbd_left)" ] || fail "devices are still connected: $(ls -d /sys/block/nbd*/pid)"
exit $status
