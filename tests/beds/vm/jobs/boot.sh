# The bed itself: the guest boots, has the NBD driver, its clock runs, and gives back what was written to $OUT.
. bed/lib.sh
uname -r
test -d /sys/module/nbd || fail "the guest's kernel has no nbd"
echo "returned" >"$OUT/answer"
