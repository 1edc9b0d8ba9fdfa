"""Small files made of very many parts: read as the service reads them, and refused before they take their time."""

import time
from pathlib import Path

import hostile_parts
from recording_samples import CANARY, samples

from encoders.reader_imports import import_readers
from serving.parse_child import read
from serving.schema import CutWindow

SOON_S = 3.0


def test_files_of_very_many_parts_are_refused_soon(tmp_path: Path) -> None:
    import_readers()
    (tmp_path / "warm").write_bytes(samples()["FIF"])
    request = {"window": CutWindow(l_freq=0.1, h_freq=40.0).model_dump(), "onsets": None, "keep_subject": False}
    read(tmp_path / "warm", request, 512)
    faults = {}
    for case in hostile_parts.parts(CANARY, samples()):
        assert len(case.content) < 4_000_000
        (tmp_path / "upload").write_bytes(case.content)
        began = time.process_time()
        head, _ = read(tmp_path / "upload", request, 512)
        seconds = time.process_time() - began
        if head["code"] not in ("epochs_mismatch", "too_many_epochs") or seconds > SOON_S:
            faults[case.name] = f"{head['code']} after {seconds:.1f} s: {head['detail']}"
    assert not faults, faults
