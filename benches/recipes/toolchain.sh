#!/bin/bash
# toolchain.sh ROOT: puts the host's C compiler into a guest's root, as far as it is needed to compile to
# object files, with forty programs to be compiled and the workload that does it.
set -euo pipefail
R=$1
put() { for f in "$@"; do mkdir -p "$R$(dirname "$f")"; cp -Ln "$f" "$R$f" 2>/dev/null || true; done; }
programs=("$(gcc -print-prog-name=cc1)" "$(command -v gcc)" "$(command -v as)")
for program in "${programs[@]}"; do
  put "$program"
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do put "$library"; done
done
include=$(gcc -print-file-name=include)
mkdir -p "$R$include" "$R/usr/include" "$R/opt/build"
cp -rL "$include/." "$R$include/"
cp -rL /usr/include/. "$R/usr/include/" 2>/dev/null || true
for n in $(seq 40); do
  { for h in stdio stdlib string unistd errno fcntl signal time math ctype limits stdint pthread \
      sys/stat sys/types sys/socket sys/mman sys/wait netinet/in arpa/inet; do echo "#include <$h.h>"; done
    echo "int main(void) { double x = $n; for (int i = 0; i < 1000; i++) x = sqrt(x * i + 1); return printf(\"%f\\n\", x) < 0; }"
  } > "$R/opt/build/p$n.c"
done
cat > "$R/opt/build/work.sh" <<'W'
# Builds, and restarts what was built for, as an administrator does; prints the microseconds it took,
# by the clock and of all processors together.
set -e
cd /opt/build
used() { awk '/^usage_usec/ { print $2 }' /sys/fs/cgroup/cpu.stat; }
begin=$(date +%s%N) before=$(used)
for n in $(seq 40); do
  gcc -O1 -c p$n.c -o p$n.o
  if [ $((n % 10)) = 0 ]; then systemctl reload nginx; systemctl restart nginx ssh; systemctl reset-failed nginx ssh; fi
done
end=$(date +%s%N)
echo $(((end - begin) / 1000)) $(($(used) - before)) > /tmp/took
W
