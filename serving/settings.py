"""Typed settings of the service: one model for the whole application, and one per kind of replica.

The values an operator may lower (upload size, epochs) are capped by the constants in `serving.schema`,
because the published schema quotes those caps.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.access_settings import AccessSettings, EncryptionSettings, PictureSettings
from serving.schema import MAX_EPOCHS, MAX_UPLOAD_MB


class ReplicaSettings(BaseModel):
    """How many replicas a deployment has and what each may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_replicas: int = Field(1, ge=0, description="replicas at start; 0, with max_replicas: none while nothing is asked")
    max_replicas: int = Field(0, ge=0, description="autoscale from n_replicas up to this many; 0 keeps n_replicas")
    num_cpus: float = Field(1.0, ge=0.0)
    num_gpus: float = Field(0.0, ge=0.0)
    max_ongoing_requests: int = Field(16, ge=1, description="requests one replica works on at a time")
    max_queued_requests: int = Field(64, ge=1, description="requests that wait for a replica before 503")
    cold_start_s: float = Field(60.0, gt=0.0, description="with n_replicas 0: how long the first replica may take")
    idle_s: float = Field(600.0, ge=0.0, description="replicas above n_replicas go after being idle for this long")
    starts_first: bool = Field(
        True,
        description="a rolling update starts a new replica before it stops an old one, and waits until there is room "
        "for both; without, the service pauses where there is one replica",
    )

    @model_validator(mode="after")
    def _scales_up(self) -> "ReplicaSettings":
        if not self.n_replicas and not self.max_replicas:
            raise ValueError("n_replicas is 0 and max_replicas too; set max_replicas, so that requests start a replica")
        if self.max_replicas and self.max_replicas <= self.n_replicas:
            raise ValueError(
                f"max_replicas must be 0 or above n_replicas, got {self.max_replicas} with n_replicas "
                f"{self.n_replicas}; "
                "a deployment scales between the two"
            )
        return self


class ParseLimits(BaseModel):
    """What one upload may use while it is read in its own process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_s: float = Field(9.0, gt=0.0)
    cpu_s: int = Field(7, ge=1)
    memory_mb: int = Field(256, ge=32, description="address space beyond the idle reader and six times the upload")
    n_files_open: int = Field(64, ge=16)
    n_files: int = Field(256, ge=16, description="files and folders one upload may unpack to")
    n_processes: int = Field(4, ge=1, description="uploads read at the same time")
    wait_s: float = Field(5.0, gt=0.0, description="an upload that was not begun to be read by then is refused, 429")
    allow_unsandboxed_uploads: bool = Field(
        False, description="UNSAFE: where the kernel cannot isolate the process that reads uploads, read them anyway"
    )


class JobSettings(BaseModel):
    """Where jobs are kept, how many, for how long, and how they are worked on; without a folder there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field("", description="uploads and results: a local folder, or a URL of fsspec (s3://bucket/jobs)")
    database: str = Field("", description="postgresql://user@host/name; empty keeps SQLite in the head node's folder")
    max_unfinished: int = Field(256, ge=1, description="jobs that wait or run before 503")
    max_unfinished_mb: float = Field(4096.0, gt=0.0, description="uploads of jobs that wait or run before 503")
    keep_s: float = Field(86400.0, gt=0.0, description="a job and its result are erased this long after its end")
    timeout_s: float = Field(1800.0, gt=0.0, description="longest run of one job")
    n_workers: int = Field(1, ge=1, description="worker replicas")
    n_at_once: int = Field(8, ge=1, description="jobs that one worker runs at a time")
    lease_s: float = Field(15.0, gt=0.0, description="a worker that was silent for this long has lost its jobs")
    beat_s: float = Field(0.5, gt=0.0, description="how often a worker prolongs its leases and tells progress")
    sweep_s: float = Field(10.0, gt=0.0, description="how often what has expired or was left over is erased")
    unserved_s: float = Field(
        60.0,
        ge=0.0,
        description="a job fails if its bundle is not served and it is older than this; 0 leaves it alone, for "
        "services with different bundles on one database",
    )
    encryption: EncryptionSettings = EncryptionSettings()

    def resolved(self) -> "JobSettings":
        """Return settings whose folder means the same in every process, whatever folder that runs in."""
        changes: dict[str, object] = {"encryption": self.encryption.resolved()}
        if self.folder and "://" not in self.folder:
            changes["folder"] = str(Path(self.folder).expanduser().resolve())
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _is_complete(self) -> "JobSettings":
        if self.database and not self.folder:
            raise ValueError("jobs.database is set and jobs.folder is not; name a folder for uploads and results too")
        if "://" in self.folder and not self.folder.startswith("file://") and not self.database:
            raise ValueError(f"jobs.folder is {self.folder!r} and SQLite needs a local folder; set jobs.database too")
        if self.encryption.on and not self.folder:
            raise ValueError(
                "jobs.encryption is set and jobs.folder is not; there is nothing to encrypt, name a folder"
            )
        if self.encryption.on and Path(self.encryption.master_key_file).is_relative_to(self.folder):
            raise ValueError("jobs.encryption.master_key_file lies in jobs.folder; keep it where the jobs are not")
        if self.beat_s * 4 > self.lease_s:
            raise ValueError(
                f"beat_s is {self.beat_s:g} and lease_s {self.lease_s:g}, expected at least four beats in a lease; "
                "a worker that is alive would lose its jobs"
            )
        return self


class StreamSettings(BaseModel):
    """Bounds of live recordings; those of messages stand in `serving.stream_schema`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_streams: int = Field(8, ge=0, description="open at a time in one ingress; 0 refuses all")
    max_streams_per_user: int = Field(4, ge=1, description="open at a time for one owner of keys")
    max_seconds: float = Field(1800.0, gt=0.0, description="longest stream; Serve's own time-out must be longer")
    idle_s: float = Field(30.0, gt=0.0, description="a stream that sends nothing for this long is closed")
    max_messages_per_s: float = Field(1000.0, gt=0.0, description="of one stream; twice as many may come in a burst")


class ServingSettings(BaseModel):
    """Everything the application needs: bundles, where to listen, and its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = Field(description="folder of the bundle that requests get that name none")
    more_bundles: tuple[Path, ...] = Field((), description="folders of bundles that requests may name by their id")
    people_folder: str = Field(
        "",
        description="calibrations to people, in <bundle id>/<group of users>/ as `phosphene calibrate --out` writes "
        "them; who has a key of the group may use and see them, on this machine without keys everybody",
    )
    n_models_kept: int = Field(
        3, ge=1, description="bundles whose models one replica keeps loaded; of more, the least recently used leave"
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    encoder: ReplicaSettings = ReplicaSettings()
    generator: ReplicaSettings = ReplicaSettings()
    parse: ParseLimits = ParseLimits()
    jobs: JobSettings = JobSettings()
    access: AccessSettings = AccessSettings()
    pictures: PictureSettings = PictureSettings()
    streams: StreamSettings = StreamSettings()
    max_batch_size: int = Field(4, ge=1, description="pictures denoised together")
    byte_equal: bool = Field(
        True,
        description="pictures do not depend by one bit on those made with them: at start layers whose results depend "
        "on the number of rows are found and filled up, and whole batches where that is not enough",
    )
    batch_wait_ms: float = Field(2.0, ge=0.0, description="how long the first picture of a batch waits for others")
    max_in_flight: int = Field(24, ge=1, description="requests inside the service before 429")
    max_upload_mb: float = Field(MAX_UPLOAD_MB, gt=0.0, le=MAX_UPLOAD_MB)
    max_epochs: int = Field(MAX_EPOCHS, ge=1, le=MAX_EPOCHS)
    request_timeout_s: float = Field(120.0, gt=0.0)

    @model_validator(mode="after")
    def _outlasts_a_cold_start(self) -> "ServingSettings":
        if not self.encoder.n_replicas:
            raise ValueError("encoder.n_replicas is 0, expected at least 1; only the generator may scale to zero")
        if not self.generator.n_replicas and self.request_timeout_s <= self.generator.cold_start_s:
            raise ValueError(
                f"request_timeout_s is {self.request_timeout_s:g} and generator.cold_start_s "
                f"{self.generator.cold_start_s:g}, expected more; the request that starts a generator would always fail"
            )
        return self

    @model_validator(mode="after")
    def _keeps_names(self) -> "ServingSettings":
        if self.people_folder and self.access.allow_open_network:
            raise ValueError(
                "people_folder and access.allow_open_network are both set: everybody could read the names of people; "
                "set access.file, or leave people_folder out"
            )
        return self

    @model_validator(mode="after")
    def _asks_for_keys(self) -> "ServingSettings":
        self.access.check_host(self.host)
        return self
