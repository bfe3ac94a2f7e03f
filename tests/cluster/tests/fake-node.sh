#!/bin/sh
# Stands in for kvnode: says its arguments, counts its starts in its data folder, and runs until it is told to stop.
echo "arguments: $*"
while [ $# -gt 0 ]; do
  case "$1" in --data-dir) data="$2" ;; esac
  shift
done
mkdir -p "$data"
echo start >> "$data/starts"
trap 'echo asked to stop; exit 0' TERM INT
echo "running as $$"
while :; do sleep 0.05; done
