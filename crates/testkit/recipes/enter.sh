# enter.sh CGROUP NETNS PROGRAM...: becomes PROGRAM in a control group and a network of its own.
mkdir -p "$1" && echo $$ > "$1/cgroup.procs" || exit 125
netns=$2
shift 2
exec nsenter --net="/run/netns/$netns" -- "$@"
