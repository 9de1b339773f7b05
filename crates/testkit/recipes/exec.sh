# exec.sh CGROUP INIT PROGRAM...: becomes PROGRAM inside the container whose first process is INIT,
# as one of the processes of CGROUP, so that the guest's service manager can place it. Nothing of the
# host's environment goes along.
echo $$ > "$1/cgroup.procs" || exit 125
init=$2
shift 2
exec nsenter -t "$init" -a -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
