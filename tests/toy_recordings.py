"""A data set on disk that costs nothing: parts of seeded noise in SI units, with a log of what was read."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from encoders.epoch_source import EpochMetadata
from encoders.epochs import SignalEpochs

SPREAD = {"eeg": 1e-5, "mag": 2e-13, "grad": 5e-12}
N_TIMES = 20


def toy_signal(n: int, seed: int, ch_types: tuple[str, ...], n_times: int = N_TIMES) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((n, len(ch_types), n_times))
    return (noise * np.asarray([SPREAD[kind] for kind in ch_types])[:, None]).astype(np.float32)


@dataclass(frozen=True)
class ToyPart:
    """One person and session; the file is there to be looked at only."""

    name: str
    file: Path
    seed: int
    n_epochs: int = 30
    block: int = 12
    ch_types: tuple[str, ...] = ("eeg", "eeg", "mag", "grad")
    ch_names: tuple[str, ...] = ("Cz", "Pz", "MLC11", "MEG0112")
    sfreq: float = 100.0
    tmin: float = -0.1
    n_times: int = N_TIMES
    spoil: tuple[int, int, float] | None = None
    seconds: float = 0.0
    log: Path | None = None

    @property
    def inputs(self) -> list[str]:
        return [str(self.file)]

    @property
    def subject(self) -> str:
        return self.name.split("_")[0]

    def signal(self) -> np.ndarray:
        data = toy_signal(self.n_epochs, self.seed, self.ch_types, self.n_times)
        if self.spoil:
            epoch, channel, value = self.spoil
            data[epoch, channel, 3] = value
        return data

    def blocks(self) -> Iterator[tuple[SignalEpochs, EpochMetadata]]:
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{self.name}\n")
        data = self.signal()
        for first in range(0, self.n_epochs, self.block):
            time.sleep(self.seconds)
            n = min(self.block, self.n_epochs - first)
            numbers = range(first, first + n)
            epochs = SignalEpochs(
                data=data[first : first + n],
                sfreq=self.sfreq,
                tmin=self.tmin,
                ch_names=self.ch_names,
                ch_types=self.ch_types,
                positions=np.full((len(self.ch_names), 3), 0.01 * (1 + self.seed % 4)),
                subject=self.subject,
                n_averaged=(2,) * n,
            )
            metadata = EpochMetadata(
                image=tuple(f"concept{i % 5}/image{i % 10}.jpg" for i in numbers),
                concept=tuple(f"concept{i % 5}" for i in numbers),
                split=tuple("test" if i % 5 == 4 else "train" for i in numbers),
                session=("ses-01",) * n,
                run=("",) * n,
                repetition=tuple(i // 10 for i in numbers),
            )
            yield epochs, metadata


@dataclass(frozen=True)
class ToySource:
    """Parts of a folder that `toy_source` filled."""

    toy_parts: tuple[ToyPart, ...]
    dataset: str = field(default="toy")

    def parts(self) -> tuple[ToyPart, ...]:
        return self.toy_parts

    def signal(self) -> np.ndarray:
        """All epochs in the order of the parts, SI units."""
        return np.concatenate([part.signal() for part in self.toy_parts])


def toy_source(folder: Path, n_parts: int = 3, log: Path | None = None, **settings: object) -> ToySource:
    """Make the input files and describe the parts; the second part is shorter."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for i in range(n_parts):
        file = folder / f"part{i}.raw"
        if not file.exists():
            file.write_bytes(bytes(100 + i))
        more = {"n_epochs": 17} if i == 1 else {}
        parts.append(ToyPart(f"sub-{i + 1:02d}_ses-01", file, i, log=log, **{**more, **settings}))  # type: ignore[arg-type]
    return ToySource(tuple(parts))


def changed(source: ToySource, index: int, **changes: object) -> ToySource:
    """Replace fields of one part."""
    parts = list(source.toy_parts)
    parts[index] = replace(parts[index], **changes)
    return replace(source, toy_parts=tuple(parts))


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
