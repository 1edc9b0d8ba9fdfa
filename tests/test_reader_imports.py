"""What is imported before forks are made is all that reading needs."""

import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pandas

from benchmarks.sample_recordings import sample_recordings

_READ = """
import sys
from pathlib import Path
from serving import parse_child, parse_server
folder = Path(sys.argv[1])
parse_server._warm(folder)
before = set(sys.modules)
window = {"tmin": -0.2, "tmax": 0.8, "l_freq": 0.5, "h_freq": 40.0}
for file in sorted((folder / "files").iterdir()):
    head, _ = parse_child.read(file, {"window": window, "onsets": None, "keep_subject": False}, 8)
    assert head["code"] == "ok", (file.name, head)
    print(file.name, sorted(set(sys.modules) - before))
    before = set(sys.modules)
"""


def test_a_warmed_process_imports_nothing_to_read_a_file(tmp_path: Path) -> None:
    files = sample_recordings(("Fp1", "Cz", "Oz"))
    (tmp_path / "files").mkdir()
    for name, content in files.items():
        (tmp_path / "files" / name.replace(" ", "-")).write_bytes(content)
    labelled = "labelled-epo.fif"  # with metadata, which MNE reads with pandas
    info = mne.create_info(["Fp1", "Cz", "Oz"], 100.0, "eeg")
    data = 1e-5 * np.random.default_rng(0).standard_normal((4, 3, 120))
    table = pandas.DataFrame({"picture": list("abcd")})
    made = mne.EpochsArray(data, info, tmin=-0.2, metadata=table, verbose="error")
    made.save(tmp_path / "files" / labelled, verbose="error")
    files[labelled] = b""
    command = [sys.executable, "-c", _READ, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr
    assert sorted(found.stdout.splitlines()) == sorted(f"{name.replace(' ', '-')} []" for name in files)
