"""The web page: a few static files that load nothing from elsewhere, and the recordings it offers to try."""

import asyncio
import base64
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from numpy.typing import NDArray

from encoders.epochs import SignalEpochs
from encoders.modality import modality_of
from serving.problems import refusal
from serving.stream_schema import SI, StreamMarker, StreamStart

_STATIC = Path(__file__).with_name("static")
PAGE = _STATIC / "index.html"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
# address -> file and media type; nothing in them is secret, so a browser gets them without a key, as the page itself
PAGE_FILES: Mapping[str, tuple[Path, str]] = {
    f"/static/{name}": (_STATIC / name, "text/css" if name.endswith(".css") else "text/javascript")
    for name in ("style.css", "app.js", "events.js", "history.js", "live.js", "page.js", "plots.js", "results.js")
}
_GAP_S = 0.4
_N_ROUNDS = 3


def add_page(app: FastAPI, recording: Callable[[], Path | None]) -> None:
    """Add the page, its files, and two ways to get the example recording."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/static/{name}", include_in_schema=False)
    async def page_file(name: str) -> FileResponse:
        found = PAGE_FILES.get(f"/static/{name}")
        if found is None:
            raise refusal("not_found", "the page has no such file")
        return FileResponse(found[0], media_type=found[1], headers=PAGE_HEADERS)

    @app.get("/example.npz", include_in_schema=False)
    async def example_recording() -> FileResponse:
        return FileResponse(_given(recording()), media_type="application/octet-stream")

    @app.get("/example/live.json", include_in_schema=False)
    async def example_stream() -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(live_example, _given(recording())))


def _given(recording: Path | None) -> Path:
    if recording is None:
        raise refusal("not_found", "this bundle holds no example recording")
    return recording


@lru_cache(maxsize=1)
def live_example(recording: Path) -> dict[str, Any]:
    """Lay the epochs of an example end to end, three times over, as a recording that can be streamed.

    Between two epochs one fades into the other, each running backwards from its end; nothing of that is decoded except
    what lies inside the cut around a stimulus.

    Parameters
    ----------
    recording : Path
        Epochs that `SignalEpochs.load` reads.

    Returns
    -------
    dict
        ``start`` and ``markers`` as `/v1/stream` takes them, ``n_samples``, ``samples`` (base64 of little-endian
        float32, (n_channels, n_samples)), and ``spread``, the typical size of a value.
    """
    epochs = SignalEpochs.load(recording)
    kind = epochs.ch_types[0]
    epochs = epochs.pick_types(*(one for one in modality_of((kind,)).kinds if one in epochs.ch_types))
    n_gap = min(round(_GAP_S * epochs.sfreq), epochs.n_times - 1)
    before, parts, markers, length = epochs.data[0], list[NDArray[np.float32]](), list[StreamMarker](), 0
    weight = ((np.arange(n_gap) + 1) / (n_gap + 1)).astype(np.float32)
    for data, stimulus in list(zip(epochs.data, epochs.stimulus, strict=True)) * _N_ROUNDS:
        gap = (1 - weight) * before[:, -2 : -2 - n_gap : -1] + weight * data[:, n_gap:0:-1]
        onset = length + n_gap + round(-epochs.tmin * epochs.sfreq)
        markers.append(StreamMarker(sample=onset, stimulus=stimulus))
        parts += [gap, data]
        length += n_gap + epochs.n_times
        before = data
    parts.append(before[:, -2 : -2 - n_gap : -1])
    samples = np.concatenate(parts, axis=1)
    places = [tuple(map(float, place)) if np.isfinite(place).all() else None for place in epochs.positions]
    start = StreamStart.model_validate(
        {
            "modality": modality_of(epochs.ch_types).name,
            "ch_names": epochs.ch_names,
            "ch_types": epochs.ch_types,
            "positions": places,
            "sfreq": epochs.sfreq,
            "unit": SI,
        }
    )
    return {
        "start": start.model_dump(mode="json", exclude={"options"}),
        "markers": [marker.model_dump(exclude={"type"}) for marker in markers],
        "n_samples": samples.shape[1],
        "samples": base64.b64encode(np.ascontiguousarray(samples, dtype="<f4").tobytes()).decode(),
        "spread": float(samples.std()),
    }
