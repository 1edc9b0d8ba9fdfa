"""`phosphene stream`: a running recording goes to a service, pictures come back while it runs."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.stream_client import StreamClient
    from serving.stream_schema import StreamEpoch, StreamRefused
    from serving.stream_sources import StreamSource

KEY_VARIABLE = "PHOSPHENE_API_KEY"


def add_stream_command(
    add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser],
) -> None:
    """Declare the command; ``add(name, run, text)`` makes one."""
    stream = add("stream", _stream, "send a running recording to a service, get pictures while it runs")
    stream.add_argument("file", type=Path, nargs="?", help="a continuous recording that is replayed")
    stream.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pictures")
    stream.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (default: %(default)s); "
                        f"its key, if it asks for one, is taken from the variable {KEY_VARIABLE}")  # fmt: skip
    replay = stream.add_argument_group("with a file")
    replay.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="1 is real time; 0 as fast as the service takes it"
    )
    replay.add_argument("--onsets", default="", help="stimulus onsets in seconds; default: the events of the file")
    lsl = stream.add_argument_group("with the lab streaming layer (pip install phosphene[lsl])")
    lsl.add_argument("--lsl", default="", metavar="NAME", help="of the stream of samples")
    lsl.add_argument("--marker-stream", default="", metavar="NAME", help="stream of texts that says when stimuli began")
    lsl.add_argument("--marker-channel", default="", metavar="LABEL", help="or the channel that holds codes of stimuli")
    lsl.add_argument("--seconds", type=float, default=math.inf, metavar="S", help="default: until Ctrl-C")
    stream.add_argument("--images", type=int, default=1, metavar="N", help="pictures per epoch")
    stream.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same pictures")
    stream.add_argument("--num-inference-steps", type=int, metavar="N", help="default: the bundle's")
    stream.add_argument("--guidance-scale", type=float, metavar="G", help="default: the bundle's")
    stream.add_argument("--bundle", default="", metavar="ID", help="one that the service has; default: its first")
    stream.add_argument("--average", action="store_true", help="answer with the mean of a stimulus's epochs so far")
    stream.add_argument("--subject", default="", help="a person the bundle knows")
    stream.add_argument("--purpose", default="", help="what the recording is decoded for; some services require it")
    stream.add_argument("--consent", action="store_true", help="the recorded person agreed to this purpose")


def _stream(arguments: argparse.Namespace) -> int:
    from serving.stream_client import StreamClient
    from serving.stream_schema import StreamOptions
    from serving.stream_sources import FileReplay, LslInlet, StreamSource, read_continuous

    if (arguments.file is None) == (not arguments.lsl):
        raise ValueError("give a file that is replayed, or --lsl NAME for a running stream, and not both")
    source: StreamSource
    if arguments.file is not None:
        source = FileReplay(read_continuous(arguments.file, arguments.onsets), arguments.speed)
    else:
        source = LslInlet(
            arguments.lsl,
            arguments.marker_stream,
            seconds=arguments.seconds,
            marker_channel=arguments.marker_channel,
        )
    names = ["images", "seed", "num_inference_steps", "guidance_scale", "bundle", "average", "subject", "purpose"]
    start = source.start(StreamOptions(**{name: getattr(arguments, name) for name in [*names, "consent"]}))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with StreamClient(arguments.url, start, api_key=os.environ.get(KEY_VARIABLE, "")) as client:
        _relay(source, client, lambda one: _tell(one, arguments.out, start.sfreq, as_json=arguments.json))
        summary = client.summary
    assert summary is not None
    if arguments.json:
        print(summary.model_dump_json())
    else:
        print(
            f"{summary.n_samples} samples, {summary.n_stimuli} stimuli: {summary.n_answered} decoded, "
            f"{summary.n_dropped} dropped, {summary.n_refused} refused. Pictures are in {arguments.out}."
        )
    return 0


def _relay(
    source: "StreamSource", client: "StreamClient", tell: "Callable[[StreamEpoch | StreamRefused], None]"
) -> None:
    """Send what the source gives until it ends or is interrupted, and tell what comes back."""
    try:
        for piece in source.pieces():
            for sample, stimulus in piece.stimuli:
                client.mark(sample, stimulus)
            client.push(piece.data)
            for one in client.answers():
                tell(one)
    except KeyboardInterrupt:
        print("ending; what is complete is still decoded", file=sys.stderr)
    for one in client.finish():
        tell(one)


def _tell(one: "StreamEpoch | StreamRefused", out: Path, sfreq: float, *, as_json: bool) -> None:
    from serving.rendering import from_base64_bytes
    from serving.stream_schema import StreamRefused

    where = {"epoch": one.number, "seconds": round(one.sample / sfreq, 3), "stimulus": one.stimulus}
    words = f"epoch {one.number} {one.stimulus}".rstrip() + f" at {where['seconds']} s"
    if isinstance(one, StreamRefused):
        problem = one.problem
        print(json.dumps(where | problem.model_dump()) if as_json else f"{words}: {problem.title}: {problem.detail}")
        return
    (epoch,) = one.answer.epochs
    files = []
    for number, image in enumerate(epoch.images):
        files.append(out / f"epoch-{one.number:03d}-image-{number}.png")
        files[-1].write_bytes(from_base64_bytes(image))
    if as_json:
        small = epoch.model_dump(mode="json", exclude={"images": True, "neighbours": {"__all__": {"thumbnail"}}})
        print(json.dumps(where | {"decoded": small, "files": [str(file) for file in files]}), flush=True)
        return
    nearest = f"; nearest: {epoch.neighbours[0].caption or epoch.neighbours[0].name}" if epoch.neighbours else ""
    if epoch.n_averaged > 1:
        words += f", mean of {epoch.n_averaged}"
    print(f"{words}: confidence {epoch.confidence:.3f} ({epoch.confidence_words}){nearest}", flush=True)
