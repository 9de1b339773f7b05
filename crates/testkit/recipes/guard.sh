# guard.sh ID CGROUP DIR: waits until standard input ends, because the owner closed it or died, then
# takes the lab down: every process, the control groups, the network, the files.
ID=$1 CGROUP=$2 DIR=$3
read -r _ || true
tries=250   # of 20 ms
while [ -d "$CGROUP" ] && [ $tries -gt 0 ]; do
  echo 1 > "$CGROUP/cgroup.kill" 2>/dev/null
  find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null
  [ -d "$CGROUP" ] && sleep 0.02
  tries=$((tries - 1))
done
ip netns del "$ID" 2>/dev/null
rm -rf "$DIR"
exit 0
