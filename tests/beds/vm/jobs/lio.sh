# The kernel's own iSCSI target (LIO): the test program that makes targets in it, here where its absence is a failure.
. bed/lib.sh
lio_up || fail "the guest's kernel has no LIO"
export CINDER_NBD_IN_VM=1 RUST_BACKTRACE=1
lio --test-threads=1 --show-output
status=$?
left=$(ls /sys/kernel/config/target/iscsi | grep ^iqn)
[ -z "$left" ] || fail "targets are left: $left"
exit $status
