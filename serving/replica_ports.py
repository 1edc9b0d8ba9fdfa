"""Replicas of Ray Serve listen for each other on the address of their node; left alone they listen on all addresses.

The token guards that port as it does Ray's others, but a service of one machine opens nothing to others. Ray Serve 2.60
has no setting for it.
"""

import functools
import logging
from typing import Any

import ray
from ray.serve._private import replica as _replica

logger = logging.getLogger(__name__)

_ALL = "[::]:0"
_BIND = "add_port_to_grpc_server"


def listen_on_own_address() -> None:
    """Narrow the port that Ray Serve opens once the constructor of this replica has returned."""
    bind = getattr(_replica, _BIND, None)
    if bind is None:
        logger.warning("this version of Ray Serve opens its replicas' ports in another way; they are left as they are")
        return
    setattr(_replica, _BIND, functools.partial(_narrowed, bind, ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call]


def _narrowed(bind: Any, host: str, server: Any, address: str) -> Any:
    own = f"[{host}]:0" if ":" in host else f"{host}:0"
    return bind(server, own if address == _ALL else address)
