"""Put trained parts together into a bundle that is known to load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.category_model import load_model
from alignment.runtime import Runtime
from encoders.modality import combination
from encoders.preprocess import PreprocessConfig
from generation.bundle import Bundle, BundleFacts, BundleParts, CutWindow, write_bundle
from generation.image_decoder import AnyDecoderConfig, RetrievalConfig, build_decoder

MARGIN = 0.2  # seconds around the window, so that resampling does not reach over the cut


def assemble_bundle(
    folder: Path,
    parts: BundleParts,
    *,
    decoder: AnyDecoderConfig,
    data_statement: str,
    configs: Mapping[str, Any],
    scores: Mapping[str, Any],
    runtime: Runtime,
    created: str | None = None,
    replace: bool = False,
) -> Bundle:
    """Load the models of a bundle to be, check that they fit together, and write the bundle.

    Parameters
    ----------
    folder : Path
        Where the bundle appears.
    parts : BundleParts
        Models and arrays.
    decoder : ImageDecoderConfig
        Backend and its default settings.
    data_statement, configs, scores, created, replace
        See ``generation.bundle.write_bundle``.
    runtime : Runtime
        Where the models are loaded for the check.

    Raises
    ------
    ValueError
        If brain, decoder and gallery are of different widths, a combination of modalities has no null, or there is a
        decoder folder without a decoder's config or the reverse.
    """
    brain = load_model(parts.brain, runtime)
    widths = {"brain": brain.embed_dim, "gallery": parts.gallery.image_embeds.shape[1]}
    image_size = parts.gallery.thumbs.shape[1]
    if isinstance(decoder, RetrievalConfig) != (parts.decoder is None):
        raise ValueError(
            f"the decoder config is {decoder.name!r} with the folder {parts.decoder}, expected a folder for every "
            "decoder but 'retrieval', which has none; change one"
        )
    if not isinstance(decoder, RetrievalConfig):
        assert parts.decoder is not None
        pictures = build_decoder(decoder, parts.decoder, runtime)
        widths["decoder"], image_size = pictures.embed_dim, pictures.image_size
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"the parts have embeddings of widths {widths}, expected one width; use parts of one CLIP space"
        )
    wanted = {*brain.modalities, combination(brain.modalities)}
    if not wanted <= set(parts.null.scores):
        raise ValueError(
            f"the null has {sorted(parts.null.scores)}, expected {sorted(wanted)}; build it for every combination"
        )
    facts = BundleFacts(
        modalities=brain.modalities,
        subjects=brain.subjects,
        embed_dim=brain.embed_dim,
        image_size=image_size,
        preprocessing_hash=preprocessing_hash(brain.preprocess_digests),
        window=cut_window(brain.preprocess_configs),
    )
    return write_bundle(
        folder,
        parts,
        facts=facts,
        decoder=decoder,
        data_statement=data_statement,
        configs=configs,
        scores=scores,
        created=created,
        replace=replace,
    )


def preprocessing_hash(digests: Mapping[str, str]) -> str:
    """Hash the preprocessing hashes of all modalities into one."""
    return hashlib.sha256(json.dumps(dict(digests), sort_keys=True).encode()).hexdigest()


def cut_window(configs: Mapping[str, PreprocessConfig]) -> CutWindow:
    """Find the cut and band of continuous recordings that serve all modalities.

    The cut covers every window and baseline with a margin; the band spans all bands, and each ``Preprocessor``
    narrows it to its own upper edge.
    """
    every = list(configs.values())
    starts = [config.tmin if config.baseline is None else min(config.tmin, config.baseline[0]) for config in every]
    return CutWindow(
        tmin=round(min(starts) - MARGIN, 6),
        tmax=round(max(config.tmax for config in every) + MARGIN, 6),
        l_freq=min(config.l_freq for config in every),
        h_freq=max(config.h_freq for config in every),
    )
