#!/bin/busybox sh
# PID 1 of the nested host. Makes the root of the machine that runs the lab
# (read-only, over 9p) the root of the nested host, with its own /proc, /sys,
# /dev, /run and /tmp, and runs the lab's agent in it. Whatever goes wrong ends
# the nested host at once, with the reason on its console.

fail() {
    echo "lab: host init: $1"
    poweroff -f
    exit 1
}

/bin/busybox mkdir -p /bin /proc /sys /dev /host
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev || fail "cannot mount devtmpfs"
mount -t proc proc /proc || fail "cannot mount proc"
mount -t sysfs sys /sys || fail "cannot mount sysfs"

# The host root never changes while the lab runs, so its pages may be cached.
options=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o "ro,$options,cache=loose" root /host || fail "cannot mount the root share"
for directory in proc sys dev; do
    mount --move "/$directory" "/host/$directory" || fail "cannot move /$directory"
done
mount -t tmpfs -o mode=755 tmpfs /host/run || fail "cannot mount a tmpfs on /run"
mount -t tmpfs -o mode=1777 tmpfs /host/tmp || fail "cannot mount a tmpfs on /tmp"
mkdir -p /host/run/lab/work /host/dev/pts /host/dev/shm
mount -t 9p -o "rw,$options" work /host/run/lab/work || fail "cannot mount the work share"
mount -t devpts -o ptmxmode=666 devpts /host/dev/pts || fail "cannot mount devpts"
mount -t tmpfs tmpfs /host/dev/shm || fail "cannot mount a tmpfs on /dev/shm"
mount -t debugfs debugfs /host/sys/kernel/debug 2>/dev/null
ip link set lo up

# What is run often is copied out of the share: a page fault over 9p is slow.
cp -r /host/run/lab/work/install/. /host/run/lab/ || fail "cannot copy the files to install"
cp /bin/busybox /host/run/lab/ || fail "cannot copy busybox"

# /lib/modules: in the machine's root it is of another kernel, or not there. Then
# a layer has to be put over /lib, in which nothing can be made.
if [ -d /host/run/lab/lib/modules ]; then
    lib=$(readlink -f /host/lib)
    if [ -d "$lib/modules" ]; then
        mount --bind /host/run/lab/lib/modules "$lib/modules"
    else
        mount -t overlay -o "ro,lowerdir=/host/run/lab/lib:$lib" modules "$lib"
    fi || fail "cannot mount the kernel's modules"
    ln -s busybox /host/run/lab/modprobe
    echo /run/lab/modprobe >/host/proc/sys/kernel/modprobe
fi
echo "lab: host init done"
chroot /host /run/lab/lab-agent || fail "the agent ended with status $?"
poweroff -f
