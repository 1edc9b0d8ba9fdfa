"""Settings of who may use the service, and of what it keeps and how; part of `serving.settings`."""

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PURPOSES = ("research", "teaching", "demonstration", "software-test")
_MEMORY_FOLDER = "/dev/shm"


class AccessSettings(BaseModel):
    """Keys, quotas, purposes and the audit log; with no `file` everybody on this machine may use the service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field("", description="what `phosphene users` wrote: groups with hashed keys; empty asks for no key")
    quota_file: str = Field("", description="SQLite file of what was used, shared by replicas; empty: in memory")
    audit_file: str = Field("", description="hash-chained log of who did what; empty keeps none")
    audit_key_file: str = Field("", description="secret of the chain; without it the log can be rewritten as a whole")
    audit_max_mb: float = Field(64.0, gt=0.0, description="a larger audit file is put aside and a new one begun")
    purposes: tuple[str, ...] = Field(PURPOSES, description="what recordings may be decoded for")
    require_purpose: bool = Field(False, description="refuse requests that do not name a purpose")
    require_consent: bool = Field(False, description="refuse requests that do not state the recorded person's consent")
    allow_open_network: bool = Field(False, description="UNSAFE: let other machines in without keys")

    @model_validator(mode="after")
    def _has_effect(self) -> "AccessSettings":
        if self.quota_file and not self.file:
            raise ValueError("access.quota_file is set and access.file is not; quotas belong to keys, so name both")
        if self.audit_key_file and not self.audit_file:
            raise ValueError("access.audit_key_file is set and access.audit_file is not; name the log too")
        if self.file and self.allow_open_network:
            raise ValueError("access.file and access.allow_open_network are both set; keys open the network already")
        return self

    def check_host(self, host: str) -> None:
        """Refuse to listen on more than this machine without keys.

        Raises
        ------
        ValueError
            If `host` is not a loopback address, and there is neither a file of keys nor the unsafe flag.
        """
        if not is_loopback(host) and not self.file and not self.allow_open_network:
            raise ValueError(
                f"host is {host!r}, which other machines reach, and no keys are set up; make some with "
                "`phosphene users create-group --from users.yaml --out access.yaml` and set access.file (--access), "
                "listen on 127.0.0.1, or say --allow-open-network, which lets everybody in"
            )

    def resolved(self) -> "AccessSettings":
        """Return settings whose files mean the same in every process, whatever folder that runs in."""
        names = ("file", "quota_file", "audit_file", "audit_key_file")
        full = {name: str(Path(getattr(self, name)).expanduser().resolve()) for name in names if getattr(self, name)}
        return self.model_copy(update=full)


class EncryptionSettings(BaseModel):
    """Encryption of what is kept of jobs, one key per owner; see `serving.vault`. Off without files.

    While it is on, no plain sample of a recording is on a disk: uploads are read in a folder that is in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    master_key_file: str = Field("", description="made by `phosphene vault new-key`; keep it off the disk of the jobs")
    key_folder: str = Field("", description="keys of the owners of jobs, encrypted; on a cluster all nodes must see it")
    memory_folder: str = Field(_MEMORY_FOLDER, description="a folder in memory (tmpfs), where uploads are read")

    @property
    def on(self) -> bool:
        """Whether anything is encrypted."""
        return bool(self.master_key_file)

    @model_validator(mode="after")
    def _has_effect(self) -> "EncryptionSettings":
        if bool(self.master_key_file) != bool(self.key_folder):
            raise ValueError("set both of encryption.master_key_file and encryption.key_folder, or neither")
        if not self.on and self.memory_folder != _MEMORY_FOLDER:
            raise ValueError("encryption.memory_folder is set and encryption is off; name the key files too")
        return self

    def resolved(self) -> "EncryptionSettings":
        """Return settings whose files mean the same in every process, whatever folder that runs in."""
        names = ("master_key_file", "key_folder")
        full = {name: str(Path(getattr(self, name)).expanduser().resolve()) for name in names if getattr(self, name)}
        return self.model_copy(update=full)


class PictureSettings(BaseModel):
    """How generated pictures are checked and signed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    safety: Literal["where_available", "required", "off"] = Field(
        "where_available", description="check pictures if there are weights; refuse to start without; or never check"
    )
    safety_folder: str = Field("", description="weights of a Stable Diffusion safety checker; empty: the bundle's own")
    c2pa_certificates: str = Field("", description="PEM file: signing certificate, then the ones above it")
    c2pa_private_key: str = Field("", description="PEM file of its key; pictures are signed if both are set")

    @model_validator(mode="after")
    def _has_effect(self) -> "PictureSettings":
        if bool(self.c2pa_certificates) != bool(self.c2pa_private_key):
            raise ValueError("set both of pictures.c2pa_certificates and pictures.c2pa_private_key, or neither")
        if self.safety_folder and self.safety == "off":
            raise ValueError("pictures.safety_folder is set and pictures.safety is 'off'; leave one of them out")
        return self

    def resolved(self) -> "PictureSettings":
        """Return settings whose files mean the same in every process, whatever folder that runs in."""
        names = ("safety_folder", "c2pa_certificates", "c2pa_private_key")
        full = {name: str(Path(getattr(self, name)).expanduser().resolve()) for name in names if getattr(self, name)}
        return self.model_copy(update=full)


def is_loopback(host: str) -> bool:
    """Tell whether an address or host name reaches this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
