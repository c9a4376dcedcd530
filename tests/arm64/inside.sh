#!/bin/sh
# inside.sh ROOT CPU SHARED COMMAND...: runs COMMAND in the aarch64 root ROOT on the emulated CPU, with SHARED as /mnt.
# It is the first process of its own mount and process namespaces (root.py starts it so): what it mounts nobody else
# sees, and when it ends, however it ends, mounts and processes are gone with it.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1 cpu=$2 shared=$3
shift 3
run() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU="$cpu" PYTHONDONTWRITEBYTECODE=1 \
    EDGEFLEET_MLPERF_TINY=/mnt/mlperf_tiny chroot "$root" "$@"; }
mount -t proc proc "$root/proc"
# devices of its own, so that nothing inside can change this machine's
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${number%%:*}" "$root/dev/${number##*:}"; done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -o bind,ro /sys "$root/sys"
mkdir -p "$root/mnt"
mount --bind "$shared" "$root/mnt"
# the emulator shows its programs this machine's processors: describe the emulated one in their place
if [ -e "$shared/describe_cpu.py" ] && [ -x "$root/usr/bin/python3" ]; then
    run /usr/bin/python3 /mnt/describe_cpu.py >"$root/tmp/cpuinfo"
    mount --bind "$root/tmp/cpuinfo" "$root/proc/cpuinfo"
fi
cd /
status=0
# not exec: this shell stays to collect orphans, as the first process of a machine does
run "$@" || status=$?
exit "$status"
