#!/bin/sh
# Process 1 of the user-mode-linux guest, whose root is the host's own: mounts what $DIR/plan says, runs $DIR/command,
# and leaves its output in $DIR/output and its exit code in $DIR/code.  $DIR comes with the kernel's command line.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc
for word in $(cat /proc/cmdline); do
    case $word in NINEP_DIR=*) DIR=${word#NINEP_DIR=} ;; esac
done
exec >>"$DIR/output" 2>&1 </dev/null
NET=$(cat "$DIR/net")
mount -t sysfs sys /sys
mount -t tmpfs none /run
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs none /dev/shm
for module in fs/netfs/netfs fs/fscache/fscache net/9p/9pnet net/9p/9pnet_fd fs/9p/9p; do
    file=/usr/lib/uml/modules/$(uname -r)/kernel/$module.ko
    [ ! -e "$file" ] || busybox insmod "$file"
done
ip link set lo up
ip addr add "$NET.2/30" dev vec0
ip link set vec0 up
# The host's loopback address, reached through the tap: servers stay on 127.0.0.1.
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
echo 1 >/proc/sys/net/ipv4/conf/vec0/route_localnet
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.1/32 via "$NET.1" dev vec0 src "$NET.2"
while read -r name options; do
    mkdir -p "/run/m/$name"
    mount -t 9p -o "trans=tcp,$options" 127.0.0.1 "/run/m/$name" || echo "cannot mount $name"
done <"$DIR/plan"
cd /run
sh "$DIR/command"
echo $? >"$DIR/code"
cd /
while read -r name options; do
    umount "/run/m/$name" || echo "cannot unmount $name"
done <"$DIR/plan"
dmesg >"$DIR/dmesg"
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
