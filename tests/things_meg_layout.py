"""A small ds004212: two runs of one person with trials, tables and recordings in the true layout."""

from pathlib import Path

import mne
import numpy as np

from encoders.datasets.things_meg_sensors import things_meg_ch_names

SFREQ, FIRST, STEP, SECONDS = 1200.0, 3425, 1821, 42
CTF_NAMES = sorted([*things_meg_ch_names(), "MRO11"])
EXP = ["aardvark/aardvark_01b.jpg", "boat/boat_02s.jpg", "coat_rack/coat_rack_03n.jpg", "boat/boat_05s.jpg"]
TESTED = "boat/boat_13s.jpg"


def trials(run: int) -> list[dict[str, str]]:
    """Ten trials of a run: two different pictures, six times the test picture, two catch trials."""
    shown = [("exp", 100 * run + i, f"images_meg/{EXP[2 * run + i]}") for i in range(2)]
    shown += [("test", 777, f"images_test_meg/{TESTED.split('/')[1]}")] * 6
    shown += [("catch", 999999, f"images_catch_meg/catch{i:03d}.jpg") for i in range(2)]
    order = np.random.default_rng(run).permutation(10)
    return [
        {
            "trial_type": shown[i][0],
            "session_nr": "1",
            "run_nr": str(run + 1),
            "image_nr": str(n + 1),
            "image_path": shown[i][2],
            "things_image_nr": str(float(shown[i][1])),
            "test_image_nr": "",
        }
        for n, i in enumerate(order)
    ]


def write_tables(root: Path, sfreq: float = SFREQ) -> None:
    """Write ``sample_attributes_P1.csv`` and the events of both runs."""
    rows = trials(0) + trials(1)
    (root / "sourcedata").mkdir(parents=True)
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (root / "sourcedata" / "sample_attributes_P1.csv").write_text("\n".join(lines) + "\n")
    for run in range(2):
        lines = ["onset\tduration\ttrial_type\tthings_category_nr\tvalue\tsample"]
        for i, row in enumerate(trials(run)):
            catch = row["trial_type"] == "catch"
            value = "N/A" if catch else row["things_image_nr"]
            sample = onset(i, sfreq)
            lines.append(f"{sample / sfreq}\t0.5\t{row['trial_type']}\t{'N/A' if catch else '12.0'}\t{value}\t{sample}")
        file = stem(root, run).with_name(stem(root, run).name + "_events.tsv")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")


def onset(i: int, sfreq: float = SFREQ) -> int:
    """Sample of the optical sensor."""
    return round((FIRST + STEP * i) * sfreq / SFREQ)


def stem(root: Path, run: int) -> Path:
    """Start of the names of a run's files."""
    folder = root / "sub-BIGMEG1" / "ses-01" / "meg"
    return folder / f"sub-BIGMEG1_ses-01_task-main_run-{run + 1:02d}"


def recording(run: int) -> mne.io.RawArray:
    """Tesla: noise of 1e-13, and 200 ms after each onset a bump; all sensors typed as the real table types them."""
    n = round(SECONDS * SFREQ)
    names = [*(f"{name}-1609" for name in CTF_NAMES), "BG1-1609", "UPPT001"]
    info = mne.create_info(names, SFREQ, ["misc"] * 272 + ["ref_meg", "stim"])
    data = np.zeros((274, n))
    data[:273] = 1e-13 * np.random.default_rng(run).standard_normal((273, n))
    for i in range(10):
        data[:272, onset(i) + 180 : onset(i) + 301] += 3e-12 * np.hanning(121)
        data[273, onset(i) - 40 : onset(i) + 20] = 64  # the trigger comes before the light
    data[273, -200:-100] = 32
    return mne.io.RawArray(data, info, verbose="error")


def write(root: Path) -> None:
    """Write the tables and both runs as FIF."""
    write_tables(root)
    for run in range(2):
        recording(run).save(stem(root, run).with_name(stem(root, run).name + "_meg.fif"), verbose="error")


def write_attributes(file: Path) -> list[dict[str, str]]:
    """The table of one person of THINGS-MEG at full count: 22,248 training, 2,400 test and 2,400 catch trials."""
    rng = np.random.default_rng(0)
    rows = []
    for concept in range(1854):
        for i in range(12):
            path = f"images_meg/concept{concept:04d}x/concept{concept:04d}x_{i + 1:02d}s.jpg"
            rows.append(("exp", 14 * concept + i + 1, path))
    for test in range(200):
        concept = 9 * test
        path = f"images_test_meg/concept{concept:04d}x_13s.jpg"
        rows += [("test", 14 * concept + 13, path)] * 12
    rows += [("catch", "", f"images_catch_meg/catch{i:04d}.jpg") for i in range(2400)]
    order = rng.permutation(len(rows))
    lines = ["trial_type,session_nr,run_nr,things_image_nr,image_path"]
    for i, row in enumerate(order):
        kind, number, path = rows[row]
        lines.append(f"{kind},{i // 2254 + 1},{i % 2254 // 226 + 1},{number},{path}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return [
        dict(zip(("trial_type", "things_image_nr", "image_path"), map(str, rows[row]), strict=True)) for row in order
    ]
