# apply.sh BUNDLE KEY RIVALS: applies a bundle. When its files are in place and nothing has been done
# about them yet, the agent is stopped for a moment and, if RIVALS is 1, asked what the other programs make
# of it: all see the same machine. They leave /run/rival.*; the agent's answer is on the output.
cd /run
rm -f rival.* agent.err agent.out; mkfifo agent.err
ask() { # NAME: what the others say now, as names of units
  { needrestart -b -r l 2>/dev/null | sed -n 's/^NEEDRESTART-SVC: //p; s/^NEEDRESTART-SESS: .*user manager.*/user@1000.service/p
      s/^NEEDRESTART-KSTA: [23]$/reboot/p' | sed 's/^systemd-manager$/1/' | sort -u > "rival.needrestart.$1"; } &
  first=$!
  { checkrestart -m 2>/dev/null | sed -n 's/^\(SERVICE\|OTHER\):[^,]*,\([0-9]*\),.*/\2/p' | while read -r pid; do
      if [ "$pid" = 1 ]; then echo 1; else sed -n 's#^0::.*\(user@[0-9]*\.service\).*#\1#p; t; s#^0::.*/\([^/]*\)$#\1#p' "/proc/$pid/cgroup"; fi
    done | sort -u > "rival.checkrestart.$1"; } &
  wait $first $!
}
if [ "$3" = 1 ]; then ask before; fi
nice -n 10 vireo-agent apply "$1" --trust "$2" --json > agent.out 2> agent.err & agent=$!
pids() { systemctl show '*.service' -p Id,MainPID | grep -v '^$' | paste - - | sort; }
pids > rival.pids.before
while IFS= read -r line; do
  echo "$line" >&2
  case $line in *"in place"*)
    if [ "$3" = 1 ]; then
      kill -STOP $agent
      pids > rival.pids.after; ask after
      kill -CONT $agent
    fi;;
  esac
done < agent.err
wait $agent; code=$?
cat agent.out
exit $code
