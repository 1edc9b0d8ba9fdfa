"""The demo: start the service, let a simulated person look at unseen scenes, POST the recordings, show the answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.client import PhospheneClient
from serving.cluster import free_port, local_service
from serving.decode import write_answer
from serving.evaluation import score_table, stored_scores
from serving.rendering import contact_sheet, from_base64
from serving.schema import GenerationResponse
from serving.settings import ParseLimits, ServingSettings
from serving.simulated import ShownScenes, show_scenes

_N_REPETITIONS = 4


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and where it lies."""

    sheet: Path
    folder: Path
    n_gallery: int
    epochs: list[dict[str, Any]]
    stored: dict[str, Any]
    seconds: float
    data_statement: str

    @property
    def n_found(self) -> int:
        """Scenes whose nearest gallery picture is the one that was shown."""
        return sum(epoch["shown"] == epoch["nearest"] for epoch in self.epochs)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "sheet": str(self.sheet),
            "folder": str(self.folder),
            "n_found": self.n_found,
            "n_shown": len(self.epochs),
            "chance": 1 / self.n_gallery,
            "epochs": self.epochs,
            "stored_scores": self.stored,
            "seconds": round(self.seconds, 1),
            "data_statement": self.data_statement,
        }

    def text(self) -> str:
        """Lay the result out for a terminal."""
        lines = [f"{'shown':58} {'nearest of ' + str(self.n_gallery):58} confidence"]
        for epoch in self.epochs:
            mark = "=" if epoch["shown"] == epoch["nearest"] else " "
            lines.append(
                f"{epoch['shown_caption'][:56]:58} {mark}{epoch['nearest_caption'][:56]:57} {epoch['confidence']:.3f}"
            )
        lines += [
            f"found again: {self.n_found} of {len(self.epochs)} (chance {100 / self.n_gallery:.1f} %), EEG and MEG "
            f"fused, {_N_REPETITIONS} presentations averaged",
            *score_table(self.stored),
            f"contact sheet {self.sheet} (shown / decoded / nearest); pictures and answer.json in {self.folder}",
            f"{self.data_statement} ({self.seconds:.0f} s)",
        ]
        return "\n".join(lines)


def run_demo(
    bundle: Path, data: Path, out: Path, *, n_scenes: int, seed: int, note: Callable[[str], None]
) -> DemoResult:
    """Run the demo end to end over HTTP.

    Parameters
    ----------
    bundle, data : Path
        The bundle, and the folder with the targets it was trained with.
    out : Path
        Receives ``demo.png`` and ``demo/``.
    n_scenes, seed : int
        How many scenes, and which.
    note : callable
        Gets one sentence per stage.

    Returns
    -------
    DemoResult
    """
    started = time.monotonic()
    note(f"1/4 a simulated person looks at {n_scenes} scenes that nothing was trained on")
    shown = show_scenes(bundle, data, n_scenes=n_scenes, n_repetitions=_N_REPETITIONS, subject=0, seed=seed)
    folder = out / "demo"
    files = shown.write(folder, "npz")
    note("2/4 starting the service (Ray Serve, 10 to 30 s)")
    # what it reads it wrote itself, so it may run where the kernel cannot isolate
    parse = ParseLimits(allow_unsandboxed_uploads=True)
    with local_service(ServingSettings(bundle=bundle, port=free_port(), parse=parse)) as url:
        with PhospheneClient(url) as client:
            note(f"3/4 POST {' + '.join(file.name for file in files)} to {url}/v1/generations")
            (info,) = client.bundles()
            # a service takes nobody's name out of a file: the request says who it is
            answer = client.generate(*files, seed=seed, average=True, subject=info.subjects[0])
        note("4/4 writing pictures, ending the service")
        write_answer(answer, folder)
        sheet = write_sheet(shown, answer, out / "demo.png")
    return DemoResult(
        sheet=sheet,
        folder=folder,
        n_gallery=shown.n_gallery,
        epochs=[_epoch(shown, answer, index) for index in range(n_scenes)],
        stored=stored_scores(bundle),
        seconds=time.monotonic() - started,
        data_statement=info.data_statement,
    )


def write_sheet(shown: ShownScenes, answer: GenerationResponse, path: Path) -> Path:
    """Write the contact sheet: shown, decoded, nearest."""
    rows = {
        "shown": list(shown.images),
        "decoded": [from_base64(epoch.images[0]) for epoch in answer.epochs],
        "nearest": [from_base64(epoch.neighbours[0].thumbnail) for epoch in answer.epochs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    title = "simulated recordings; decoded pictures are generated estimates"
    contact_sheet(rows, title=title).save(path)
    return path


def _epoch(shown: ShownScenes, answer: GenerationResponse, index: int) -> dict[str, Any]:
    epoch = answer.epochs[index]
    nearest = epoch.neighbours[0]
    return {
        "shown": shown.names[index],
        "shown_caption": shown.captions[index],
        "nearest": nearest.name,
        "nearest_caption": nearest.caption,
        "similarity": nearest.similarity,
        "confidence": epoch.confidence,
    }
