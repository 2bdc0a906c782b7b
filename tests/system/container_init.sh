#!/bin/bash
# Becomes a real systemd, as PID 1 of the namespaces that it runs in (mount, pid, cgroup, net, ipc, uts).
#   container_init.sh DIRECTORY PATH...
# The root is an overlay over the host's root: it is all there, and what is written goes to a tmpfs that ends with
# the namespace. Each PATH (the project, its interpreter) that is a mount of its own on the host, or lies below
# /tmp or another place that is empty here, is bound into it read-only.
set -eu
directory=$1
shift

ip link set lo up
hostname container
mount -t tmpfs -o mode=755 tmpfs "$directory"
cd "$directory"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
for device in null zero full random urandom tty; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr

for path; do
  case $(findmnt --noheadings --output TARGET --target "$path"):$path in
    /:/tmp/* | /:/run/* | /:/dev/*) ;;
    /:*) continue ;;
  esac
  mkdir -p "./$path"
  mount --bind "$path" "./$path"
  mount -o remount,bind,ro "./$path"
done

# None of the host's own services: a target of ours, and no unit that would touch the hardware or the kernel.
rm -rf etc/systemd/system/*.wants
: >etc/machine-id
mkdir -p etc/systemd/system
cat >etc/systemd/system/test.target <<'UNIT'
[Unit]
Description=The container is up
Requires=basic.target
After=basic.target
AllowIsolate=yes
UNIT
for unit in dev-hugepages.mount dev-mqueue.mount kmod-static-nodes.service sys-fs-fuse-connections.mount \
  sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount systemd-modules-load.service \
  systemd-networkd.service systemd-remount-fs.service systemd-resolved.service systemd-sysctl.service \
  systemd-timesyncd.service systemd-udev-trigger.service systemd-udevd-control.socket \
  systemd-udevd-kernel.socket systemd-udevd.service; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done

mkdir -p old
pivot_root . old
cd /
umount --lazy /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=test.target --log-target=journal --log-level=info --show-status=no
