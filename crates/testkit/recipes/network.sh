# network.sh NETNS ADDRESS: a network namespace with a bridge that has ADDRESS; guests hang on it.
set -e
ip netns add "$1"
ip -n "$1" link set lo up
ip -n "$1" link add br0 type bridge forward_delay 0
ip -n "$1" addr add "$2" dev br0
ip -n "$1" link set br0 up
