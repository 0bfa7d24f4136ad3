"""A simulation of a Proxmox VE 8 node: its programs, over real LXC containers, answering as recorded.

    python -m simulated_pve pct start 921

with `$SIMULATED_PVE` naming the node's folder, inside the mount namespace that `node.simulated_node` makes. What the
recordings do not cover ends with status 99 and says so, so that no test rests on it.
"""
