"""A Ray cluster of a head and two nodes of one core each, in this process's own network namespace: Ray's daemons
listen on every interface. It says where the head is, and does what it reads: `kill` one of the nodes, `add` one.

unshare -n python ray_nodes.py FOLDER
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# A node is dead after 5 s without a sign of it, instead of 30.
HEALTH = {"health_check_initial_delay_ms": 5000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
NODE: dict[str, Any] = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20, "include_dashboard": False}


def main(folder: str) -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TMPDIR"] = folder  # whose folder `ray` Ray writes the head's address into, and does not make
    (Path(folder) / "ray").mkdir()
    from ray.cluster_utils import Cluster

    head = NODE | {"num_cpus": 0, "temp_dir": folder, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        nodes = [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
        print(f"upsnet: {cluster.address}", flush=True)
        for line in sys.stdin:
            if line.strip() == "kill":
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            else:
                nodes.append(cluster.add_node(num_cpus=1, **NODE))
            print("upsnet: done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
