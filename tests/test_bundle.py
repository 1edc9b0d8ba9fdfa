"""The bundle folder: what is written comes back, and any change to it is refused by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.calibrate import ConfidenceNull
from encoders.epochs import SignalEpochs
from generation.bundle import Bundle, BundleError, BundleFacts, BundleParts, CutWindow, write_bundle
from generation.gallery import Gallery
from generation.image_decoder import StableUnCLIPConfig

RNG = np.random.default_rng(0)
GALLERY = Gallery(
    RNG.normal(size=(5, 8)).astype(np.float32),
    RNG.integers(0, 256, size=(5, 4, 4, 3), dtype=np.uint8),
    tuple(f"picture-{i}" for i in range(5)),
    tuple(f"a picture of {i}" for i in range(5)),
)
NULL = {"eeg": np.linspace(0, 1, 7, dtype=np.float32), "eeg+meg": np.linspace(0, 2, 5, dtype=np.float32)}
FACTS = BundleFacts(
    modalities=("eeg", "meg"),
    subjects=("sim-01",),
    embed_dim=8,
    image_size=4,
    preprocessing_hash="0" * 64,
    window=CutWindow(tmin=-0.2, tmax=1.0, l_freq=0.1, h_freq=40.0),
)
EXAMPLE = SignalEpochs(
    data=RNG.normal(size=(1, 2, 10)).astype(np.float32),
    sfreq=100.0,
    tmin=0.0,
    ch_names=("Cz", "Pz"),
    ch_types=("eeg", "eeg"),
    positions=np.zeros((2, 3), np.float32),
)


def write(folder: Path, **changes: Any) -> Bundle:
    sources = folder.parent / f"{folder.name}-sources"
    for name in ("brain", "unclip/unet"):
        (sources / name).mkdir(parents=True, exist_ok=True)
        (sources / name / "weights.bin").write_bytes(bytes(range(256)))
    parts = BundleParts(sources / "brain", sources / "unclip", GALLERY, ConfidenceNull(NULL), example=EXAMPLE)
    arguments: dict[str, Any] = {
        "data_statement": "simulated",
        "facts": FACTS,
        "decoder": StableUnCLIPConfig(noise_level=3),
        "configs": {"train": {"steps": 10}},
        "scores": {"top_1": 0.3, "chance": 1 / 200},
    }
    return write_bundle(folder, parts, **(arguments | changes))


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and seal it again, as someone would who wants it to pass."""
    from generation.manifest import Manifest

    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)
    (folder / "manifest.json").write_text(Manifest.model_validate(raw).sealed().text())


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    written = write(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest == written.manifest
    assert {name: getattr(bundle.manifest, name) for name in vars(FACTS)} == vars(FACTS)
    assert bundle.manifest.decoder == StableUnCLIPConfig(noise_level=3).model_dump()
    assert bundle.manifest.scores["chance"] == 1 / 200
    assert (bundle.brain_folder / "weights.bin").is_file()
    assert (bundle.decoder_folder / "unet" / "weights.bin").is_file()
    assert {key: list(value) for key, value in bundle.null().scores.items()} == {k: list(v) for k, v in NULL.items()}
    assert bundle.example is not None
    assert np.array_equal(SignalEpochs.load(bundle.example).data, EXAMPLE.data)
    gallery = bundle.gallery()
    assert np.array_equal(gallery.image_embeds, GALLERY.image_embeds) and np.array_equal(gallery.thumbs, GALLERY.thumbs)
    assert (gallery.names, gallery.captions) == (GALLERY.names, GALLERY.captions)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle-sources"}


def test_the_id_depends_on_content_and_not_on_time(tmp_path: Path) -> None:
    first = write(tmp_path / "a", created="2026-01-01T00:00:00+00:00")
    second = write(tmp_path / "b", created="2026-01-02T00:00:00+00:00")
    assert first.id == second.id and first.manifest.seal != second.manifest.seal
    assert write(tmp_path / "c", scores={"top_1": 0.4}).id != first.id


def test_every_flipped_byte_is_refused_and_its_file_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle").folder
    rng = np.random.default_rng(1)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for position in rng.integers(0, len(content), size=20):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match=path.name):
                Bundle.load(folder)
        path.write_bytes(content)
    Bundle.load(folder)


def test_a_byte_of_the_manifest_cannot_change_either(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle").folder
    content = (folder / "manifest.json").read_bytes()
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (folder / "manifest.json").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.load(folder)


@pytest.mark.parametrize("name", ["brain/weights.bin", "gallery.json", "null.safetensors", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "bundle").folder
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["notes.txt", "brain/.hidden", "unclip/unet/more.bin"])
def test_an_extra_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "bundle").folder
    (folder / name).write_text("x")
    with pytest.raises(BundleError, match=name):
        Bundle.load(folder)


def test_truncation_and_links_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle").folder
    weights = folder / "brain" / "weights.bin"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"brain/weights\.bin has 255 bytes, expected 256"):
        Bundle.load(folder)
    weights.unlink()
    (tmp_path / "outside.bin").write_bytes(content)
    weights.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(BundleError, match=r"brain/weights\.bin is a link"):
        Bundle.load(folder)


OUTSIDE = ["../outside.bin", "/etc/hostname", "brain/../../outside.bin", "brain\\x", "C:/x", "", ".", "brain//x", "./x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_out_of_the_folder_are_refused_unread(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "bundle").folder
    (tmp_path / "outside.bin").write_bytes(bytes(range(256)))
    entry = json.loads((folder / "manifest.json").read_text())["files"]["brain/weights.bin"]
    rewrite_manifest(folder, lambda raw: raw["files"].update({name: entry}))
    monkeypatch.setattr("generation.bundle._check_file", pytest.fail)
    with pytest.raises(BundleError, match=r"manifest\.json lists"):
        Bundle.load(folder)


def test_another_schema_version_says_what_to_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle").folder
    rewrite_manifest(folder, lambda raw: raw.update(schema_version=2))
    with pytest.raises(BundleError, match=r"manifest\.json has schema_version 2, expected 1; use the"):
        Bundle.load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"schema_version": 1}', b"[" * 100_000])
def test_nonsense_instead_of_a_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "bundle").folder
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(folder)


def test_a_bundle_without_a_brain_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle").folder
    (folder / "brain" / "weights.bin").unlink()
    rewrite_manifest(folder, lambda raw: raw["files"].pop("brain/weights.bin"))
    with pytest.raises(BundleError, match="brain/ is missing"):
        Bundle.load(folder)


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    first = write(tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists"):
        write(tmp_path / "bundle")
    with pytest.raises(ValueError):
        write(tmp_path / "bundle", replace=True, scores={"top_1": float("nan")})
    assert Bundle.load(tmp_path / "bundle").id == first.id
    with pytest.raises(ValueError):
        write(tmp_path / "other", data_statement="")
    assert not (tmp_path / "other").exists()
    assert write(tmp_path / "bundle", replace=True, scores={}).id == Bundle.load(tmp_path / "bundle").id != first.id
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle-sources", "other-sources"}


def test_describing_a_bundle_needs_no_torch(tmp_path: Path, project_root: Path) -> None:
    write(tmp_path / "bundle")
    code = (
        "import sys; from generation.bundle import Bundle; "
        f"b = Bundle.load({str(tmp_path / 'bundle')!r}); b.gallery(); b.null(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project_root, check=True)


def test_neighbours_are_the_most_similar_best_first() -> None:
    similarity = np.array([[0.1, 0.9, 0.3, 0.3, -1.0], [0.5, 0.4, 0.3, 0.2, 0.1]], dtype=np.float32)
    best = GALLERY.neighbours(similarity, top_k=3)
    assert [[n.index for n in row] for row in best] == [[1, 2, 3], [0, 1, 2]]
    assert best[0][0].name == "picture-1" and best[0][0].caption == "a picture of 1"
    assert best[0][0].similarity == pytest.approx(0.9)
    assert len(GALLERY.neighbours(similarity, top_k=50)[0]) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("a",)},
        {"image_embeds": np.zeros((5, 8), np.float32)},
        {"image_embeds": np.ones((5, 8))},
        {"thumbs": np.zeros((5, 4, 4), np.uint8)},
        {"captions": ()},
    ],
)
def test_a_gallery_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    fields = {"image_embeds": GALLERY.image_embeds, "thumbs": GALLERY.thumbs, "names": GALLERY.names}
    with pytest.raises(ValueError, match="expected"):
        Gallery(**({**fields, "captions": GALLERY.captions} | change))
