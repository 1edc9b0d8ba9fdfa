"""Marks of generated pictures: IPTC's digital source type with seed, bundle and preprocessing, and a signature on top.

The mark is always there; it says how the picture was made and nothing about the person or the recording. A C2PA
manifest, signed with the operator's key, says the same so that it can be trusted; it needs the extra ``c2pa``. Each
signature is different, so a signed picture has the same pixels for the same seed but not the same bytes. Pictures of a
gallery were not generated, and do not come through here.
"""

import io
import json
import threading
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.access_settings import PictureSettings
from serving.rendering import SOURCE_TYPE, encode_png

C2PA_LABEL = "org.phosphene.generation"
# Signature algorithms by what a public key is; C2PA takes these.
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# No thumbnail, nothing fetched over the network, and no try to verify what was just signed against a list of trust.
_C2PA_SETTINGS: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
}


@dataclass(frozen=True)
class PictureFacts:
    """How one picture was made."""

    bundle: str
    preprocessing: str
    seed: int
    epoch: int
    image: int
    num_inference_steps: int
    guidance_scale: float


class Marker:
    """Encode generated pictures with their marks.

    Parameters
    ----------
    settings : PictureSettings
        With a certificate and a key pictures are signed.

    Raises
    ------
    ValueError
        If the certificate or the key cannot be used, or the library for signing is not installed.
    """

    def __init__(self, settings: PictureSettings | None = None) -> None:
        settings = settings or PictureSettings()
        self._signer: Any = None
        self._one_at_a_time = threading.Lock()
        if settings.c2pa_private_key:
            self._signer = _signer(Path(settings.c2pa_certificates), Path(settings.c2pa_private_key))

    def png(self, image: NDArray[np.uint8], facts: PictureFacts) -> bytes:
        """Encode a generated picture, (h, w, 3) uint8."""
        png = encode_png(image, {f"phosphene:{name}": str(value) for name, value in asdict(facts).items()})
        return png if self._signer is None else self._signed(png, facts)

    def _signed(self, png: bytes, facts: PictureFacts) -> bytes:
        import c2pa

        created = {
            "action": "c2pa.created",
            "digitalSourceType": SOURCE_TYPE,
            "softwareAgent": {"name": "phosphene", "version": version("phosphene")},
        }
        manifest = {
            "claim_generator_info": [{"name": "phosphene", "version": version("phosphene")}],
            "format": "image/png",
            "assertions": [
                {"label": "c2pa.actions", "data": {"actions": [created]}},
                {"label": C2PA_LABEL, "data": asdict(facts)},
            ],
        }
        signed = io.BytesIO()
        with self._one_at_a_time, c2pa.Context.from_dict(_C2PA_SETTINGS) as context:
            with c2pa.Builder(json.dumps(manifest), context) as builder:
                builder.sign(self._signer, "image/png", io.BytesIO(png), signed)
        return signed.getvalue()


def _signer(certificates: Path, private_key: Path) -> Any:
    try:
        import c2pa
    except ImportError:
        raise ValueError(
            "pictures.c2pa_private_key is set and the package c2pa-python is not installed; "
            "install phosphene[c2pa], or leave the setting out"
        ) from None
    chain, key = certificates.read_bytes(), private_key.read_bytes()
    try:
        # no time stamp of another server: nothing leaves this machine
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(_algorithm(chain), chain, key, None))
    except c2pa.C2paError as error:
        raise ValueError(f"the C2PA key or certificate is refused: {error}; see the C2PA certificate profile") from None
    return signer


def _algorithm(chain: bytes) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    public = x509.load_pem_x509_certificate(chain).public_key()
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _CURVES:
        return _CURVES[public.curve.name]
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(public, rsa.RSAPublicKey):
        return "ps256"
    raise ValueError(
        f"the C2PA certificate has a key of type {type(public).__name__}, expected Ed25519, RSA or one of "
        f"{sorted(_CURVES)}; use another certificate"
    )
