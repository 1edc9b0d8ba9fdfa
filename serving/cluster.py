"""A private Ray cluster on this machine for one service: loopback only, own token, own folder, ended with the process.

Nothing here touches another cluster: ports are chosen by Ray or found free, and shutting down ends only what
`ray.init` started here.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.access_settings import EncryptionSettings
from serving.settings import ServingSettings
from serving.traces import RAY_ENVIRONMENT, configured

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

APPLICATION = "phosphene"
_N_STARTS = 3
_OBJECT_STORE_BYTES = 200 * 2**20
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # without this Ray resolves 127.0.0.1 to an address that other machines reach, and listens there
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # on a busy machine the agents take longer than Ray's 30 s to start
    "RAY_agent_register_timeout_ms": "120000",
    # nor are the 5 s enough that Ray Serve gives its proxy to start and to answer
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # three failures in a row replace a proxy: at Ray's period of 10 s the service would be away for half a minute
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # refusals for want of room are given by the proxy: asking the ingress costs the processors that make pictures
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.early_refusal:middlewares",
    # Ray starts its workers at niceness 15, which starves the service wherever anything else runs
    "RAY_worker_niceness": "0",
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


def _start_ray(folder: str, n_cpus: int, memory_folder: str) -> None:
    """Start a cluster of this process; on a busy machine Ray's fixed 30 s may pass once before its agents are up.

    With a `memory_folder`, what does not fit into Ray's shared memory goes there and not to the disk.
    """
    import ray

    places: dict[str, Any] = (
        {"_plasma_directory": memory_folder, "object_spilling_directory": memory_folder} if memory_folder else {}
    )

    own = signal.getsignal(signal.SIGTERM)
    for attempt in range(1, _N_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=n_cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
                **places,
            )
            # Ray puts its own in its place, which ends this process before the cluster
            if callable(own) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, own)
            return
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == _N_STARTS:
                raise
            logger.warning("Ray did not start in time on this busy machine; trying again")
            ray.shutdown()


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}); choose another port") from error


def prepare_environment() -> None:
    """Set what Ray reads from the environment, with a new token: one that was lying around is another cluster's.

    Ray reads mode and token once per process, so a process that used Ray before has to read them again; Ray's own
    token set-up refreshes them in the same way.
    """
    for name, value in (ENVIRONMENT | (RAY_ENVIRONMENT if configured() else {})).items():
        os.environ.setdefault(name, value)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def local_ray(n_cpus: int) -> Iterator[None]:
    """Start a private cluster that gives its tasks ``n_cpus`` cores, and end it."""
    prepare_environment()
    with _started_ray(n_cpus, EncryptionSettings()):
        yield


@contextmanager
def _started_ray(n_cpus: int, keys: EncryptionSettings) -> Iterator[None]:
    import ray

    # short: socket paths inside are limited to 107 bytes
    folder = tempfile.mkdtemp(prefix="ph-", dir="/tmp")
    spills = tempfile.mkdtemp(prefix="ph-", dir=keys.memory_folder) if keys.on else ""
    try:
        _start_ray(folder, n_cpus, spills)
        yield
    finally:
        if ray.is_initialized():
            ray.shutdown()
        for made in filter(None, (folder, spills)):
            shutil.rmtree(made, ignore_errors=True)


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

    Raises
    ------
    ValueError, OSError
        If the address is taken, the bundle is damaged or the access file cannot be read.
    """
    _check_free(settings.host, settings.port)
    prepare_environment()

    from serving.app import build
    from serving.user_groups import read_access_file

    if settings.access.file:  # read again by each ingress; here the fault is told at once and in one line
        read_access_file(Path(settings.access.resolved().file))

    application = build(settings)
    with (
        _started_ray(max(8, os.cpu_count() or 1), settings.jobs.encryption),
        served(application, settings) as url,
    ):
        yield url


def reason(message: str) -> str:
    """Give the sentence of a refusal alone, without Ray's traceback around it; of anything else all that is known."""
    kind, _, sentence = message.strip().rpartition("\n")[2].partition(": ")
    return sentence if kind.rpartition(".")[2] in ("ValueError", "BundleError", "OSError") else message


@contextmanager
def served(application: "Application", settings: ServingSettings) -> Iterator[str]:
    """Run what `serving.app.build` made on the Ray that this process is connected to; yield its base URL."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(
                host=settings.host,
                port=settings.port,
                # a last resort, which counts from the start of a WebSocket too; the service's own come first
                request_timeout_s=max(settings.request_timeout_s, settings.streams.max_seconds) + 10.0,
            ),
        )
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            deployments = serve.status().applications[APPLICATION].deployments
            reasons = "; ".join(f"{name}: {reason(one.message)}" for name, one in deployments.items() if one.message)
            raise RuntimeError(f"the service did not start. {reasons}") from error
        yield f"http://{settings.host}:{settings.port}"
    finally:
        if ray.is_initialized():
            # deleting waits for requests in flight, up to a minute; what is left ends with the cluster
            try:
                serve.delete(APPLICATION)
            except TimeoutError:
                logger.warning("requests were still in flight after a minute; they are cut off")
