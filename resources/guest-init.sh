#!/bin/busybox sh
# PID 1 of a guest. Does what the kernel command line asks for, in its order,
# and prints one marker line, beginning with "lab:", for each milestone:
#
#   lab.do=TASK,TASK…     tasks, see below; none: a shell on the console
#   lab.bytes=N           how much of each disk `nvme` reads (default 4 MiB)
#   lab.reads=N           how often `reads` reads a block (default 1000)
#   lab.pings=N           how many echo requests `net` and `affinity` send (default 3)
#   lab.raise=N           how many interrupts `msi` and `pin` have edu raise (default 20)
#   lab.disk=SERIAL       the NVMe that `load` reads (default: any)
#   lab.rounds=N          how often `rebind` takes the first NVMe from its driver and
#                         gives it back (default 3); `hold` waits for a line of input
#   lab.wait=N            longest wait for a device, in seconds (default 20)
#   lab.bar=ID,N,V        the memory BAR that `bar` tries: the device's vendor and
#                         device in hexadecimal, the BAR's number (a 32-bit one if it
#                         is to be moved), and a value that its first register keeps
#   lab.move=A,A…         addresses to which `bar` moves it, one after the other
#
# Tasks: nvme, reads, net, affinity, msi, pin, pci, ports, resets, rebind, hold, load,
# unload, dump, bar, cpus, nap (1 s), sleep (for ever), beat (a marker each half
# second, for ever), poweroff, reboot, panic, shell, and NAME of each function
# task_NAME in /tasks, a script that a scenario may add.

/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

# Markers go through the console only, one write each, so that a kernel message
# cannot stand in the middle of one.
marker() {
    read -r uptime _ </proc/uptime
    echo "lab: $1 uptime=$uptime${2:+ $2}"
}

# setting NAME DEFAULT: the value of NAME=… on the kernel command line.
setting() {
    value=$2
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) value=${word#*=} ;; esac
    done
    echo "$value"
}

limit=$(setting lab.wait 20)

# await WHAT TEST…: waits until the test holds; fails with a marker after the limit.
await() {
    what=$1
    shift
    tries=$((limit * 20))
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            marker missing "what=$what"
            return 1
        fi
        usleep 50000
    done
}

# The interrupts that arrived, one marker a line of /proc/interrupts that names
# the device's driver queue or interface: name, count of each CPU added up.
interrupts() {
    cpus=$(grep -c '^processor' /proc/cpuinfo)
    grep -E "[[:space:]]$1[^[:space:]]*\$" /proc/interrupts | while read -r number rest; do
        set -- $rest
        sum=0
        i=0
        while [ "$i" -lt "$cpus" ]; do
            sum=$((sum + $1))
            shift
            i=$((i + 1))
        done
        chip=$1
        while [ $# -gt 1 ]; do shift; done
        marker interrupts "irq=${number%:} name=$1 count=$sum chip=$chip"
    done
}

task_nvme() {
    bytes=$(setting lab.bytes 4194304)
    await nvme0n1 test -b /dev/nvme0n1 || return
    for disk in /dev/nvme[0-9]n[0-9]; do
        name=${disk#/dev/}
        marker nvme-found "disk=$name sectors=$(cat "/sys/block/$name/size")"
        dd if="$disk" of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null && marker nvme-first-read "disk=$name"
        sum=$(dd if="$disk" bs=65536 count="$((bytes / 65536))" 2>/dev/null | sha256sum)
        marker nvme-read "disk=$name sha256=${sum%% *} bytes=$((bytes / 65536 * 65536))"
    done
    interrupts nvme
}

task_net() {
    pings=$(setting lab.pings 3)
    await eth0 test -e /sys/class/net/eth0 || return
    for nic in /sys/class/net/eth*; do
        name=${nic##*/}
        ip addr add 10.0.2.15/24 dev "$name"
        ip link set "$name" up
        await link grep -q 1 "$nic/carrier" || return
        received=$(ping -i 0.2 -c "$pings" -W 5 10.0.2.2 | sed -n 's/.* \([0-9]*\) packets received.*/\1/p')
        marker net "name=$name driver=$(basename "$(readlink "$nic/device/driver")") irq=$(cat "$nic/device/irq") sent=$pings received=${received:-0}"
        interrupts "$name"
        # All have one and the same network.
        ip addr del 10.0.2.15/24 dev "$name"
    done
}

# Moves a network card's interrupts from CPU to CPU and back while packets flow.
task_affinity() {
    pings=$(setting lab.pings 3)
    await eth0 test -e /sys/class/net/eth0 || return
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    await link grep -q 1 /sys/class/net/eth0/carrier || return
    ping -A -q -c "$pings" -W 5 10.0.2.2 >/ping &
    moves=0
    while kill -0 $! 2>/dev/null; do
        cpu=$((moves % 2 + 1))
        for irq in $(sed -n 's/^ *\([0-9]*\):.* eth0.*/\1/p' /proc/interrupts); do
            echo "$cpu" >"/proc/irq/$irq/smp_affinity" || return
        done
        moves=$((moves + 1))
    done
    received=$(sed -n 's/.* \([0-9]*\) packets received.*/\1/p' /ping)
    marker affinity "sent=$pings received=${received:-0} moves=$moves"
    interrupts eth0
    ip addr del 10.0.2.15/24 dev eth0
}

# byte FILE OFFSET: a byte of a device's config space.
byte() {
    hexdump -v -s "$2" -n 1 -e '1/1 "%u"' "$1"
}

# poke FILE OFFSET BYTE…: writes octal bytes to a device's config space.
poke() {
    file=$1
    at=$2
    shift 2
    printf "$(printf '\\%s' "$@")" | dd of="$file" bs=1 seek="$at" conv=notrunc 2>/dev/null
}

# How many interrupts arrived by vector 0xf2, which Linux counts whoever sent them.
counted() {
    set -- $(grep '^ *PIN:' /proc/interrupts)
    echo "$2"
}

# MSI of QEMU's teaching device, for which there is no driver: programs its
# capability by hand, and has it raise interrupts.
task_msi() {
    raised=$(setting lab.raise 20)
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat "$device/vendor"):$(cat "$device/device")" = 0x1234:0x11e8 ] || continue
        config=$device/config
        read -r bar _ <"$device/resource"
        msi=$(byte "$config" 52)
        until [ "$msi" -eq 0 ] || [ "$(byte "$config" "$msi")" -eq 5 ]; do
            msi=$(byte "$config" $((msi + 1)))
        done
        # Memory and bus mastering on; message 0xf2 to 0xfee00000; MSI on.
        poke "$config" 4 006 000
        poke "$config" $((msi + 4)) 000 000 340 376 000 000 000 000 362 000
        poke "$config" $((msi + 2)) 001
        before=$(counted)
        i=0
        while [ "$i" -lt "$raised" ]; do
            devmem $((bar + 0x60)) 32 1
            devmem $((bar + 0x64)) 32 1
            i=$((i + 1))
        done
        usleep 100000
        middle=$(counted)
        # Off: what it raises now goes nowhere.
        poke "$config" $((msi + 2)) 000
        devmem $((bar + 0x60)) 32 1
        devmem $((bar + 0x64)) 32 1
        usleep 100000
        marker msi "raised=$raised counted=$((middle - before)) off=$(($(counted) - middle))"
    done
}

# The interrupt pin of the same device, by the driver for any device that has
# one: it turns the pin off in its handler, and user space turns it on again.
task_pin() {
    raised=$(setting lab.raise 20)
    echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
    await uio0 test -e /dev/uio0 || return
    device=$(readlink -f /sys/class/uio/uio0/device)
    read -r bar _ <"$device/resource"
    exec 3</dev/uio0
    i=0
    while [ "$i" -lt "$raised" ]; do
        devmem $((bar + 0x60)) 32 1
        # The driver's count, once there is another.
        count=$(timeout 5 dd bs=4 count=1 <&3 2>/dev/null | hexdump -v -e '1/4 "%u"')
        devmem $((bar + 0x64)) 32 1
        poke "$device/config" 5 000
        i=$((i + 1))
    done
    usleep 100000
    marker pin "raised=$raised counted=${count:-0}"
    interrupts uio_pci_generic
}

task_pci() {
    for device in /sys/bus/pci/devices/*; do
        driver=$(readlink "$device/driver")
        marker pci "address=${device##*/} id=$(cat "$device/vendor"):$(cat "$device/device") driver=${driver##*/}"
    done
}

# What stands behind which port, with the link that both say they have.
task_ports() {
    for bridge in /sys/bus/pci/devices/*; do
        for device in "$bridge"/0000:*; do
            [ -e "$device/config" ] || continue
            marker port "address=${bridge##*/} driver=$(basename "$(readlink "$bridge/driver")") device=${device##*/} speed=$(link "$bridge" speed) width=$(link "$bridge" width) device-speed=$(link "$device" speed) device-width=$(link "$device" width)"
        done
    done
}

link() {
    tr ' ' _ <"$1/current_link_$2"
}

# Resets the first NVMe in each way that the kernel has for it, and reads it
# again after each.
task_resets() {
    await nvme0n1 test -b /dev/nvme0n1 || return
    device=$(readlink -f /sys/class/nvme/nvme0/device)
    for method in $(cat "$device/reset_method"); do
        echo "$method" >"$device/reset_method"
        if echo 1 >"$device/reset"; then
            marker reset "method=$method"
            task_nvme
        else
            marker reset-failed "method=$method"
        fi
    done
}

# Reads blocks of 4 KiB off the first NVMe, past the page cache, one at a time.
task_reads() {
    count=$(setting lab.reads 1000)
    await nvme0n1 test -b /dev/nvme0n1 || return
    dd if=/dev/nvme0n1 of=/dev/null bs=4096 count="$count" iflag=direct 2>/dev/null || return
    marker reads "count=$count"
}

# Takes the first NVMe from its driver and gives it back, over and over, with a
# read past the page cache in each round.
task_rebind() {
    rounds=$(setting lab.rounds 3)
    await nvme0n1 test -b /dev/nvme0n1 || return
    device=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")
    driver=$(readlink -f "/sys/bus/pci/devices/$device/driver")
    round=0
    while [ "$round" -lt "$rounds" ]; do
        echo "$device" >"$driver/unbind" && echo "$device" >"$driver/bind" || break
        await nvme0n1 test -b /dev/nvme0n1 || break
        dd if=/dev/nvme0n1 of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null || break
        round=$((round + 1))
    done
    marker rebind "rounds=$round"
}

# Stands still until a line of input comes, so that the host can look.
task_hold() {
    marker hold
    read -r _
}

# has_disk SERIAL: finds the NVMe of that serial number, any if it's empty; sets
# `disk` to its name.
has_disk() {
    for disk in nvme0n1 nvme1n1; do
        [ -b "/dev/$disk" ] || continue
        read -r serial <"/sys/block/$disk/device/serial"
        case $serial in "${1:-$serial}") return ;; esac
    done
    return 1
}

# Reads an NVMe over and over, past the page cache, while other tasks run.
task_load() {
    wanted=$(setting lab.disk "")
    await "disk $wanted" has_disk "$wanted" || return
    count=$(($(setting lab.bytes 4194304) / 65536))
    while [ ! -e /tmp/enough ]; do
        dd if="/dev/$disk" bs=65536 count="$count" iflag=direct 2>/dev/null | sha256sum
    done >/tmp/sums &
    marker load "disk=$disk"
}

# has_read N: `load` has read N times by now.
has_read() {
    [ "$(wc -l </tmp/sums)" -ge "$1" ]
}

# Ends `load` once it has read from beginning to end after all the tasks so far:
# the first read to end from here on may have begun before them.
task_unload() {
    await "two more reads" has_read $(($(wc -l </tmp/sums) + 2))
    touch /tmp/enough
    wait
    marker unload "reads=$(wc -l </tmp/sums) sha256=$(sort -u /tmp/sums | cut -d ' ' -f 1 | tr '\n' ,)"
}

# All of each function's config space, in hexadecimal.
task_dump() {
    for device in /sys/bus/pci/devices/*; do
        bytes=$(od -An -v -tx1 "$device/config" | tr -d ' \n')
        marker dump "address=${device##*/} id=$(cat "$device/vendor"):$(cat "$device/device") bytes=$bytes"
    done
}

# config DEVICE OFFSET SIZE VALUE: one write of 2 or 4 bytes to config space.
config() {
    bytes=
    shift=0
    while [ "$shift" -lt "$(($3 * 8))" ]; do
        bytes="$bytes\\x$(printf %02x $((($4 >> shift) & 255)))"
        shift=$((shift + 8))
    done
    printf "$bytes" | dd of="/sys/bus/pci/devices/$1/config" bs="$3" seek=$(($2 / $3)) conv=notrunc 2>/dev/null
}

# Where BARs are and how large, and whether the first register of one of them
# keeps a value, also after the BAR was moved behind the back of the kernel.
task_bar() {
    wanted=$(setting lab.bar "")
    id=${wanted%%,*} value=${wanted##*,} number=${wanted%,*}
    number=${number#*,}
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat "$device/vendor"):$(cat "$device/device")" = "0x${id%:*}:0x${id#*:}" ] && break
    done
    address=${device##*/}
    [ -e "$device/driver" ] && echo "$address" >"$device/driver/unbind"
    index=0
    while read -r start end flags; do
        [ "$index" = "$number" ] && at=$start && top=$end
        [ "$((flags))" != 0 ] && marker bar "address=$address index=$index start=$((start)) size=$((end - start + 1))"
        index=$((index + 1))
    done <"$device/resource"
    config "$address" 4 2 2
    devmem "$at" 32 "$value"
    marker bar-kept "at=$((at)) value=$(($(devmem "$at" 32))) last=$(($(devmem $((top - 3)) 32)))"
    for to in $(setting lab.move "" | tr , ' '); do
        config "$address" 4 2 0
        config "$address" $((16 + number * 4)) 4 "$to"
        off=$(($(devmem "$to" 32)))
        config "$address" 4 2 2
        marker bar-moved "at=$((to)) value=$(($(devmem "$to" 32))) off=$off before=$(($(devmem "$at" 32)))"
        at=$to
    done
}

task_cpus() {
    marker cpus "online=$(grep -c '^processor' /proc/cpuinfo)"
}

task_nap() {
    marker nap
    sleep 1
    marker nap-end
}

if [ -e /tasks ]; then . /tasks; fi

marker init
for task in $(setting lab.do shell | tr , ' '); do
    case $task in
    nvme | reads | net | affinity | msi | pin | pci | ports | resets | load | unload | dump | bar | cpus | nap)
        "task_$task"
        ;;
    rebind | hold) "task_$task" ;;
    sleep) marker sleep && sleep 1000000 ;;
    poweroff) marker poweroff && poweroff -f ;;
    reboot) marker reboot && reboot -f ;;
    beat) while true; do marker beat && usleep 500000; done ;;
    panic) marker panic && echo 1 >/proc/sys/kernel/sysrq && echo c >/proc/sysrq-trigger ;;
    shell) setsid cttyhack sh ;;
    *) if type "task_$task" >/dev/null; then "task_$task"; else marker unknown-task "task=$task"; fi ;;
    esac
done
marker end
poweroff -f
