"""A made-up study of categories in the layout of the published averages, and what turns it into a bundle."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from encoders.datasets.things_eeg1_erps import FILE

CLASSES = ("animal", "body part", "food", "tool", "vehicle")
CH_NAMES = ("O1", "Oz", "O2", "PO7", "PO8", "P7", "P8", "Pz", "Cz", "FCz", "Fz", "C3")
PEOPLE = tuple(range(2, 14))
PATTERNS = {name: [f"{name.replace(' ', '_')}_*.png"] for name in CLASSES}


def write_study(folder: Path, effect: float = 3.0) -> None:
    """Made-up people in the layout of the published averages; two of them lack FCz."""
    generator = np.random.default_rng(0)
    times = np.arange(276, dtype=np.float32) / 250 - 0.1
    course = np.stack([np.exp(-(((times - 0.1 - 0.07 * k) / 0.04) ** 2)) for k in range(len(CLASSES))])
    pattern = generator.standard_normal((len(CLASSES), len(CH_NAMES)))
    shape = (len(PEOPLE), len(CLASSES), len(CH_NAMES), len(times))
    noise = np.apply_along_axis(
        lambda one: np.convolve(one, np.hanning(25), "same") / 3, 3, generator.standard_normal(shape)
    )
    erp = noise + effect * pattern[None, :, :, None] * course[None, :, None]
    erp[-2:, :, CH_NAMES.index("FCz")] = np.nan
    (folder / FILE).parent.mkdir(parents=True)
    np.savez(
        folder / FILE, erp_uV=erp.astype(np.float32), subject=np.array(PEOPLE), category=np.array(CLASSES),
        ch_names=np.array(CH_NAMES), times=times, sfreq=np.float32(250.0),
    )  # fmt: skip


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    for name in CLASSES:
        for index in range(2 if name == "tool" else 4):
            shade = 40 * CLASSES.index(name) + index
            Image.new("RGB", (30, 20), (shade, 90, 120)).save(folder / f"{name.replace(' ', '_')}_{index}.png")


def write_categories(folder: Path) -> Path:
    """Write averages, pictures and two configurations, plain and aligned, into a folder."""
    folder.mkdir(exist_ok=True)
    write_study(folder)
    write_pictures(folder / "gallery")
    (folder / "pictures.yaml").write_text(yaml.safe_dump(PATTERNS))
    for name, alignment in (("plain", "none"), ("aligned", "whiten")):
        settings = {"start": 0.05, "stop": 0.5, "width": 0.05, "penalty": 1.0, "alignment": alignment}
        config = {"dataset": "things_eeg1", "n_folds": 4, "n_inner": 2, "settings": [settings]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def arguments(study: Path, out: Path, config: Path, *more: object) -> list[str]:
    known = ["--data", study, "--gallery", study / "gallery", "--pictures", study / "pictures.yaml"]
    return [str(one) for one in ("bundle", "--study", config, *known, "--out", out, "--thumb-size", 24, *more)]
