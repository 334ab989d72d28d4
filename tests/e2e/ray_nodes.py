"""A Ray cluster whose nodes are processes of this machine, in a process of its own: for Ray leaves threads and
descriptors in who starts one.

First it says its address. Then it reads a word and what goes with it from each line, and says a line: for ``add CPUS
GPUS`` the node's id, for ``lose ID`` and ``remove ID`` nothing.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
    nodes = {}
    print(f"said {cluster.address}", flush=True)
    try:
        for line in sys.stdin:
            word, *told = line.split()
            answer = ""
            if word == "add":
                node = cluster.add_node(num_cpus=int(told[0]), num_gpus=int(told[1]))
                nodes[answer := node.node_id] = node
            else:
                cluster.remove_node(nodes.pop(told[0]), allow_graceful=word == "remove")
            print(f"said {answer}", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
