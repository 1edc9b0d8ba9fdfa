"""A private Ray cluster on this machine for one service: loopback only, own token, own folder, ended with the process.

Nothing here touches another cluster: ports are chosen by Ray or found free, and shutting down ends only what
`ray.init` started here.
"""

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from serving.settings import ServingSettings

_OBJECT_STORE_BYTES = 200 * 2**20
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # oversubscribed OpenMP barriers cost far more than they give: one thread per replica unless told otherwise
    "OMP_NUM_THREADS": "1",
}


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


@contextmanager
def local_service(settings: ServingSettings) -> Iterator[str]:
    """Start a cluster and the application; yield the base URL once it is ready; end both on exit.

    Parameters
    ----------
    settings : ServingSettings

    Yields
    ------
    str
        For instance ``http://127.0.0.1:8000``.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # a token that was lying around belongs to another cluster
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    from serving.app import build

    # short: socket paths inside are limited to 107 bytes
    folder = tempfile.mkdtemp(prefix="ph-", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=max(8, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(
                host=settings.host, port=settings.port, request_timeout_s=settings.request_timeout_s + 10.0
            ),
        )
        serve.run(build(settings), name="phosphene", route_prefix="/")
        yield f"http://{settings.host}:{settings.port}"
    finally:
        if ray.is_initialized():
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
