#!/bin/sh
# run_container.sh ROOT USER MOUNT... -- COMMAND...: becomes a command in a container's place.
#
# To be run by root in a mount namespace of its own (unshare --mount). ROOT, an empty folder, becomes
# a read-only root with the system's programs and libraries. A MOUNT is SOURCE:TARGET, read-only, or
# tmpfs:TARGET, which can be written. The command runs as USER (a number), in no other group, without
# capabilities or a way to get some, and ends with its parent.
set -eu
root=$1 user=$2
shift 2
mount -t tmpfs tmpfs "$root"
for name in proc dev etc usr; do
  mkdir "$root/$name"
  mount --rbind "/$name" "$root/$name"
done
for name in bin sbin lib lib64; do # links to folders in /usr
  [ ! -L "/$name" ] || cp -P "/$name" "$root/$name"
done
while [ "$1" != -- ]; do
  target=$root${1#*:}
  mkdir -p "$target"
  case $1 in
    tmpfs:*) mount -t tmpfs -o mode=1777 tmpfs "$target" ;;
    *) mount --bind "${1%%:*}" "$target" && mount -o remount,bind,ro "$target" ;;
  esac
  shift
done
shift
mount -o remount,ro "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all --pdeathsig TERM "$@"
