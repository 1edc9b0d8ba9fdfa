"""Decoding on this machine without a server: the same reading, models and answer as over HTTP."""

import asyncio
import json
from pathlib import Path

from starlette.exceptions import HTTPException
from tqdm import tqdm

from serving.answers import Answers
from serving.local_backend import LocalBackend
from serving.metrics import Metrics
from serving.people import People
from serving.problems import problem_of
from serving.rendering import from_base64_bytes
from serving.sandbox import Sandbox
from serving.schema import MAX_FILES, GenerationFields, GenerationResponse, Progress
from serving.settings import ParseLimits, ServingSettings

# The caller's own files: isolated where the kernel can, read all the same where it cannot.
_OWN_FILES = ParseLimits(allow_unsandboxed_uploads=True)


def decode_files(
    bundle: Path, files: list[Path], fields: GenerationFields, out: Path, *, people_folder: str = ""
) -> GenerationResponse:
    """Decode one recording, or an EEG and a MEG recording, and write pictures and the answer.

    Parameters
    ----------
    bundle : Path
        Folder of the bundle.
    files : list of Path
    fields : GenerationFields
    out : Path
        Receives ``epoch-000-image-0.png`` and so on, and ``answer.json``.
    people_folder : str
        Calibrations to people, as the setting of that name; ``fields.subject`` says to whom.

    Returns
    -------
    GenerationResponse

    Raises
    ------
    ValueError
        If the recording is refused, nobody is named whose calibration is to be used, or `out` is a file.
    """
    if people_folder and not fields.subject:
        raise ValueError(
            f"calibrations of {people_folder} were asked for and no person was named; name one (--subject), or leave "
            "the folder out"
        )
    if len(files) > MAX_FILES:
        raise ValueError(f"got {len(files)} files, at most {MAX_FILES} are taken: one of EEG and one of MEG")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder for the pictures; name another")
    contents = [file.read_bytes() for file in files]
    settings = ServingSettings(bundle=bundle, people_folder=people_folder, parse=_OWN_FILES)
    answer = asyncio.run(_answer(settings, fields, contents))
    write_answer(answer, out)
    return answer


def write_answer(answer: GenerationResponse, out: Path) -> list[Path]:
    """Write the pictures of an answer as PNG files, and the rest of it as ``answer.json``; return the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for epoch in answer.epochs:
        for number, image in enumerate(epoch.images):
            path = out / f"epoch-{epoch.index:03d}-image-{number}.png"
            path.write_bytes(from_base64_bytes(image))
            written.append(path)
    small = answer.model_dump(mode="json")
    for epoch in small["epochs"]:
        del epoch["images"]
        for neighbour in epoch["neighbours"]:
            del neighbour["thumbnail"]
    (out / "answer.json").write_text(json.dumps(small, indent=1))
    return written


async def _answer(settings: ServingSettings, fields: GenerationFields, contents: list[bytes]) -> GenerationResponse:
    sandbox = Sandbox(settings.parse, max_epochs=settings.max_epochs, keep_subject=True)
    try:
        await sandbox.start()
        answers = Answers(LocalBackend(settings), sandbox, Metrics(), people=People(settings.people_folder))
        with tqdm(desc="decoding", unit="step", delay=1.0) as bar:

            def advance(progress: Progress) -> None:
                if progress.stage == "generate":
                    bar.total = progress.n_steps
                    bar.update(progress.step - bar.n)

            return await answers.generation(fields, contents, advance, owner="")
    except HTTPException as error:
        raise ValueError(problem_of(error).detail) from None
    finally:
        sandbox.close()
