"""An encoder of others, in a folder of ours: ``encoder.json`` says what it wants, ``encoder.safetensors`` is its state.

Published encoders were trained on epochs of the THINGS sets that were whitened (MVNN) and cut from the onset. What they
give lies in the space of the image model they were trained against, named in ``encoder.json``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from encoders.build import EncoderConfig, SignalShape, build_encoder
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.published_checkpoints import PublishedEncoder, recognise
from encoders.whitening import mvnn

INFO, STATE, IMAGE_PROJECTOR = "encoder.json", "encoder.safetensors", "image_projector.safetensors"
BATCH = 64
# Whitened epochs have a standard deviation near 1, recordings in volt or tesla one far below this.
WHITENED_STD = 1e-2

CHANNELS_63 = tuple(
    (
        "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 C3 C1 "
        "Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 "
        "O1 Oz O2"
    ).split()
)
CHANNELS_17 = tuple("P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2".split())
_MONTAGES = {63: CHANNELS_63, 17: CHANNELS_17}

# Image model that each publication's files were trained against unless its options were changed.
TARGETS = {
    "atm": "open_clip ViT-H-14 laion2b_s32b_b79k",
    "nice": "open_clip ViT-L-14 openai",
    "ubp": "open_clip RN50 openai",
    "neurobridge": "open_clip RN50 openai",
}
_SCALE_USES = {"ATMS": "as stored", "ATMS_50": "as stored", "UBP TSconv": "softplus", "UBP EEGProjectLayer": "softplus"}


class ExpectedInput(BaseModel):
    """What the encoder was trained on; ``ch_names`` is empty where the file does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_channels: int
    n_times: int
    sfreq: float
    tmin: float = 0.0
    ch_names: tuple[str, ...] = ()
    whitening: Literal["MVNN"] = "MVNN"
    units: str = "none: whitened, standard deviation near 1"


class EncoderInfo(BaseModel):
    """The content of ``encoder.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["phosphene-encoder-1"] = "phosphene-encoder-1"
    design: str
    config: EncoderConfig
    embed_dim: int
    brain_projector: Literal["none", "linear", "mlp"]
    n_subjects: int
    subjects: dict[str, int]
    input: ExpectedInput
    target_space: str
    image_projector: Literal["none", "linear", "mlp"]
    logit_scale: dict[str, float | str]
    source: dict[str, str]

    @property
    def shape(self) -> SignalShape:
        """What builds the network."""
        return SignalShape(self.input.n_channels, self.input.n_times, self.input.sfreq, self.n_subjects)


class ProjectedEncoder(nn.Module):
    """An encoder with a projector behind it, as NeuroBridge trains it."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs; arguments and result as of the encoder."""
        embeds: Tensor = self.projector(self.encoder(data, positions, subject))
        return embeds


def import_encoder(
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    folder: Path,
    *,
    source: Mapping[str, str],
    n_times: int | None = None,
    target_space: str = "",
) -> EncoderInfo:
    """Translate the tensors of a published checkpoint and write them as an encoder folder.

    Parameters
    ----------
    kind, arrays, n_times
        As `encoders.published_checkpoints.recognise`.
    folder : Path
        Made when missing; an encoder in it is replaced.
    source : mapping of str to str
        Names of the files and their sha256.
    target_space : str
        The image model, if not the publication's usual one.

    Raises
    ------
    UnknownCheckpoint
        If the tensors are not of the claimed kind. Nothing is written.
    """
    found = recognise(kind, arrays, n_times=n_times)
    shape = found.shape
    info = EncoderInfo(
        design=found.design,
        config=found.config,
        embed_dim=found.embed_dim,
        brain_projector=_projector_kind(found.brain_projector),
        n_subjects=shape.n_subjects,
        subjects=found.subjects,
        input=ExpectedInput(
            n_channels=shape.n_channels,
            n_times=shape.n_times,
            sfreq=shape.sfreq,
            ch_names=_MONTAGES.get(shape.n_channels, ()),
        ),
        target_space=target_space or TARGETS[kind],
        image_projector=_projector_kind(found.image_projector),
        logit_scale=_logit_scale(found),
        source=dict(source),
    )
    state = {f"encoder.{name}": value for name, value in found.tensors.items()}
    state |= {f"projector.{name}": value for name, value in _renamed(found.brain_projector)}
    # the network is built once before anything is written: what cannot be loaded is not kept
    _loaded(info, state)
    folder.mkdir(parents=True, exist_ok=True)
    if found.image_projector:
        (folder / IMAGE_PROJECTOR).write_bytes(save(_contiguous(dict(_renamed(found.image_projector)))))
    (folder / STATE).write_bytes(save(_contiguous(state)))
    (folder / INFO).write_text(info.model_dump_json(indent=1))
    return info


def load_encoder(folder: Path) -> tuple[nn.Module, EncoderInfo]:
    """Build the network of an encoder folder with its trained state, in evaluation mode.

    Returns
    -------
    network : nn.Module
        ``forward(data (b, c, t), positions (c, 2), subject (b,)) -> (b, d)``, float32; ``d`` is ``info.embed_dim``,
        or the width of the projector behind it.
    info : EncoderInfo

    Raises
    ------
    ValueError
        If the folder is incomplete or its files do not belong together.
    """
    missing = [name for name in (INFO, STATE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}; make it with `phosphene import`")
    try:
        info = EncoderInfo.model_validate_json((folder / INFO).read_text())
        state = load_file(folder / STATE)
    except ValidationError as error:
        raise ValueError(f"{folder / INFO} is not readable: {error.errors()[0]['msg']}; import it again") from error
    except SafetensorError as error:
        raise ValueError(f"{folder / STATE} is damaged ({error}); import it again") from error
    return _loaded(info, state), info


def embed_epochs(
    folder: Path, epochs: SignalEpochs, *, subject: str = "", whiten: bool = False
) -> tuple[NDArray[np.float32], EncoderInfo]:
    """Embed a recording with an encoder folder, on the CPU.

    Parameters
    ----------
    folder : Path
        What `import_encoder` wrote.
    epochs : SignalEpochs
        Channels are found by name, in any order, where the encoder knows names. A longer epoch is cut to the encoder's
        window.
    subject : str
        A person the encoder knows; empty: an unknown person.
    whiten : bool
        Whiten with the noise covariance of these same epochs. Otherwise they must be whitened already.

    Returns
    -------
    brain_embeds : ndarray, (n_epochs, d), float32
        As the network gives them, not normalised.
    info : EncoderInfo

    Raises
    ------
    EpochsMismatch
        If channels, rate, window or scale are not the encoder's.
    ValueError
        If the person is not known.
    """
    network, info = load_encoder(folder)
    if subject and subject not in info.subjects:
        known = sorted(info.subjects) or "no person: it is the same network for everybody"
        raise ValueError(f"the encoder does not know subject {subject!r}, it knows {known}; leave the subject out")
    data = _fitted(epochs, info.input, whiten=whiten)
    index = torch.full((len(data),), info.subjects.get(subject, info.n_subjects))
    positions = torch.full((data.shape[1], 2), -1.0)
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(data[start : start + BATCH]), positions, index[start : start + BATCH])
            for start in range(0, len(data), BATCH)
        ]
    return torch.cat(parts).numpy(), info


def save_embeds(path: Path, brain_embeds: NDArray[np.float32], epochs: SignalEpochs, info: EncoderInfo) -> None:
    """Write embeddings with the stimulus of each epoch and the encoder's description, as ``.npz`` without objects."""
    np.savez(
        path,
        allow_pickle=False,
        brain_embeds=brain_embeds,
        stimulus=np.asarray(epochs.stimulus, dtype=np.str_),
        target_space=np.asarray(info.target_space),
        encoder=np.asarray(json.dumps(info.model_dump(mode="json"))),
    )


def _fitted(epochs: SignalEpochs, wanted: ExpectedInput, *, whiten: bool) -> NDArray[np.float32]:
    """Return the epochs as the encoder expects them, (n, c, t), whitened."""
    if abs(epochs.sfreq - wanted.sfreq) > 1e-3:
        raise EpochsMismatch(
            f"the encoder expects {wanted.sfreq:g} Hz, the recording has {epochs.sfreq:g} Hz; resample it first"
        )
    if wanted.ch_names:
        missing = [name for name in wanted.ch_names if name not in epochs.ch_names]
        if missing:
            raise EpochsMismatch(
                f"the encoder expects {wanted.n_channels} channels by name, and the recording lacks {missing[:8]}; "
                f"it has {list(epochs.ch_names)[:8]}; rename or interpolate channels"
            )
        epochs = epochs.pick(wanted.ch_names)
    elif epochs.n_channels != wanted.n_channels:
        raise EpochsMismatch(
            f"the encoder expects {wanted.n_channels} channels in the order of its training, the recording has "
            f"{epochs.n_channels}; pick those channels"
        )
    start = round((wanted.tmin - epochs.tmin) * wanted.sfreq)
    if start < 0 or start + wanted.n_times > epochs.n_times:
        raise EpochsMismatch(
            f"the encoder expects {wanted.n_times} samples from {wanted.tmin:g} s after the onset, the recording has "
            f"{epochs.n_times} from {epochs.tmin:g} s; cut longer epochs"
        )
    data = np.ascontiguousarray(epochs.data[:, :, start : start + wanted.n_times])
    if whiten:
        return np.asarray(mvnn(data) @ data, dtype=np.float32)
    if data.std() < WHITENED_STD:
        raise EpochsMismatch(
            f"the encoder expects whitened epochs with a standard deviation near 1, the recording has {data.std():.3g} "
            "and is probably in volt or tesla; whiten it as in training (MVNN), or by its own noise (--whiten)"
        )
    return data


def _loaded(info: EncoderInfo, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    encoder = build_encoder(info.config, info.shape, info.embed_dim)
    projector = {name: value for name, value in state.items() if name.startswith("projector.")}
    network = ProjectedEncoder(encoder, _projector(info.brain_projector, projector))
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{STATE} does not fit {INFO}: {str(error)[:500]}; import the encoder again") from error
    return network.eval() if info.brain_projector != "none" else encoder.eval()


def _projector(kind: str, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    sizes = [value.shape for value in state.values() if value.ndim == 2]
    if kind == "none":
        return nn.Identity()
    n_out, n_in = sizes[0]
    if kind == "linear":
        return nn.Linear(n_in, n_out)
    return nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Linear(n_out, n_out))


def _projector_kind(table: Mapping[str, NDArray[Any]]) -> Literal["none", "linear", "mlp"]:
    if not table:
        return "none"
    return "linear" if "linear.weight" in table else "mlp"


def _renamed(table: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    """Return a projector's tensors without the name of its only child, ``linear`` or ``mlp``."""
    return [(name.partition(".")[2], value) for name, value in table.items()]


def _logit_scale(found: PublishedEncoder) -> dict[str, float | str]:
    if found.logit_scale is None:
        return {"note": "the file has none"}
    return {"stored": found.logit_scale, "used": _SCALE_USES.get(found.design, "exponentiated")}


def _contiguous(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in tensors.items()}
