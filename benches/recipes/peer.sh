#!/bin/bash
# peer.sh PEER prepare|make|apply: one way to bring a tree or an image from base to target. Run where
# base.img and target.img are, and, but for images, base/ and target/ mounted and base.tar and target.tar.
# "make" prints the number of bytes that have to travel.
set -euo pipefail
size() { stat -c %s "$@" | awk '{sum += $1} END {print sum + 0}'; }
under() { du -sb --apparent-size "$1" | cut -f1; }
export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_BASE_DIR=$PWD/borg-home
# ostree carries no device nodes, and looks at them before it looks at what to skip.
commit() {
  mount -t tmpfs tmpfs "$1/dev"
  ostree --repo=ostree commit -b "$1" "${@:2}" --tree=dir="$1" >/dev/null
}
case $1-$2 in
  whole-prepare) ;;
  whole-make) zstd -q -3 -T0 -f target.img -o whole.zst; size whole.zst ;;
  whole-apply) zstd -q -d -f whole.zst -o out.img; rm -f out.img ;;

  zstd-prepare | xdelta3-prepare) ;;
  zstd-make) zstd -q -3 -f --long=31 --patch-from=base.tar target.tar -o patch.zst; size patch.zst ;;
  zstd-apply) zstd -q -d -f --long=31 --patch-from=base.tar patch.zst -o out.tar; cmp out.tar target.tar; rm -f out.tar ;;
  xdelta3-make) xdelta3 -q -9 -B 2147483648 -e -f -s base.tar target.tar patch.xdelta3; size patch.xdelta3 ;;
  xdelta3-apply) xdelta3 -q -B 2147483648 -d -f -s base.tar patch.xdelta3 out.tar; cmp out.tar target.tar; rm -f out.tar ;;

  casync-prepare) rm -rf store; casync make --store=store base.caidx base >/dev/null; under store > before ;;
  casync-make) casync make --store=store target.caidx target >/dev/null; echo $(($(under store) - $(cat before) + $(size target.caidx))) ;;
  casync-apply) rm -rf out; mkdir out; casync extract --store=store --seed=base target.caidx out >/dev/null; rm -rf out ;;

  borg-prepare) rm -rf repo; borg init -e none repo; borg create -C zstd,3 repo::base base; under repo > before ;;
  borg-make) borg create -C zstd,3 repo::target target; echo $(($(under repo) - $(cat before))) ;;
  borg-apply) rm -rf out; mkdir out; (cd out && borg extract ../repo::target); rm -rf out ;;

  ostree-prepare) rm -rf ostree; ostree --repo=ostree init --mode=archive; commit base ;;
  ostree-make)
    commit target --parent="$(ostree --repo=ostree rev-parse base)"
    ostree --repo=ostree static-delta generate --min-fallback-size=0 --from=base --to=target >/dev/null
    under ostree/deltas ;;
  ostree-apply)
    rm -rf clone out; ostree --repo=clone init --mode=bare-user; ostree --repo=clone pull-local ostree base >/dev/null
    ostree --repo=clone static-delta apply-offline "$(dirname "$(find ostree/deltas -name superblock)")" >/dev/null; rm -rf clone ;;
  *) echo "peer.sh: no $1-$2" >&2; exit 2 ;;
esac
