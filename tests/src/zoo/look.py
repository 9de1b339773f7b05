# look.py ID...: what a look from outside shows of this machine: its units, and who holds which files.
# Each ID is :PATH, or INODE:PATH for a file that was there; one that still is there is left out. Prints JSON. Knows nothing of what is tested.
import glob, json, os, subprocess, sys

root = os.stat("/")
device = "%02x:%02x" % (os.major(root.st_dev), os.minor(root.st_dev))
ids = {}
for argument in sys.argv[1:]:
    inode, _, path = argument.partition(":")
    there = os.stat(path).st_ino if os.path.exists(path) else None
    if inode and int(inode) != there:
        ids[int(inode)] = path
    elif not inode and there:
        ids[there] = path

def unit_of(pid):
    parts = open(f"/proc/{pid}/cgroup").read().strip().split("::")[-1].split("/")
    users = [part for part in parts if part.startswith("user@")]
    if users:  # A user's manager stands for all that is below it; with a mark, for itself too.
        return users + [users[0] + "!"] * ("init.scope" in parts)
    return [part for part in parts if part.endswith((".service", ".scope"))][-1:]

def held_by(pid):
    found = set()
    for line in open(f"/proc/{pid}/maps"):
        fields = line.split()
        if fields[3] == device and int(fields[4]) in ids:
            found.add(int(fields[4]))
    for fd in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            stat = os.stat(fd)
        except OSError:
            continue
        if stat.st_dev == root.st_dev and stat.st_ino in ids:
            found.add(stat.st_ino)
    return found

mine = {os.getpid(), os.getppid()}
holders = {path: [] for path in ids.values()}
for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
    if pid in mine:
        continue
    try:
        for inode in held_by(pid):
            for unit in ["1"] if pid == 1 else unit_of(pid):
                if unit not in holders[ids[inode]]:
                    holders[ids[inode]].append(unit)
    except OSError:
        continue
keys = ["Id", "ActiveState", "SubState", "MainPID", "NRestarts", "Result"]
text = subprocess.run(["systemctl", "show", "*", "-p", ",".join(keys)], capture_output=True, text=True).stdout
units = {}
for block in text.strip().split("\n\n"):
    unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    if "Id" in unit:
        units[unit.pop("Id")] = {key: unit.get(key, "") for key in keys[1:]}
print(json.dumps({"ids": {path: inode for inode, path in ids.items()}, "holders": holders, "units": units}))
