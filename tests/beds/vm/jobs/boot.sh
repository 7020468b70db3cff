# The bed itself: the guest boots, has the NBD driver, and gives back what is written to $OUT.
. bed/lib.sh
test -d /sys/module/nbd || fail "the guest's kernel has no nbd"
echo "ok: Linux $(uname -r) with nbd, up after $(cut -d' ' -f1 /proc/uptime) s"
uname -r >"$OUT/release"
