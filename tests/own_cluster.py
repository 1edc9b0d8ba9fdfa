"""A Ray cluster of several nodes on this machine: own token, own folder, loopback only, ended with what started it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from serving.cluster import prepare_environment

_STORE_BYTES = 100 * 2**20


class OwnCluster:
    """Nodes that are processes of this machine; start them from the main thread, with which they end."""

    def __init__(self, n_cpus: int) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args=_arguments(n_cpus))

    @property
    def address(self) -> str:
        """Where drivers find the cluster."""
        return str(self._cluster.address)

    def add_node(self, n_cpus: int) -> Node:
        """Start one more node."""
        node: Node = self._cluster.add_node(**_arguments(n_cpus))
        return node

    def lose_node(self, node: Node) -> None:
        """Kill every process of a node at once."""
        self._cluster.remove_node(node, allow_graceful=False)

    def alive(self) -> bool:
        """Tell whether everything that was started still runs."""
        return bool(self._cluster.remaining_processes_alive())

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _arguments(n_cpus: int) -> dict[str, Any]:
    return {
        "num_cpus": n_cpus,
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
    }


@contextmanager
def own_cluster(n_cpus: int) -> Iterator[OwnCluster]:
    """Start a head node; end all nodes and remove the folder afterwards."""
    folder = tempfile.mkdtemp(prefix="ph-", dir="/tmp")  # short, for the paths of sockets
    with pytest.MonkeyPatch.context() as patch:
        # Ray notes the newest cluster of the machine in its folder, for whoever asks for "auto"
        patch.setenv("RAY_TMPDIR", folder)
        prepare_environment()
        try:
            cluster = OwnCluster(n_cpus)
            try:
                yield cluster
            finally:
                cluster.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
