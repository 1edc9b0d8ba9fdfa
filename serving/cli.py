"""The `phosphene` command. Everything heavy is imported inside the commands, so `--help` answers at once."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.data_commands import add_data_commands, evaluate_run
from serving.dataset_command import add_dataset_command
from serving.erasure_command import add_erasure_command
from serving.format_list import add_formats_command
from serving.stream_command import add_stream_command
from serving.user_commands import add_user_commands

# The demo bundle and the simulated world it was trained in, as shipped beside the packages.
_GENERATION = Path(__file__).resolve().parents[1] / "generation"
DEMO_BUNDLE = _GENERATION / "demo_bundle"
DEMO_DATA = _GENERATION / "demo_data"
ALSO_HELP = (
    "with --run-dir, figures apart from the inductive ones: label_free, csls (each fitted on the person's epochs of "
    "validation pictures), label_free_transductive, csls_transductive (on the evaluated epochs), few_shot (labelled)"
)
ENCODER_CONFIG = DEMO_DATA / "encoder.yaml"
_PARTS = {"jobs": "`jobs: {folder: /srv/jobs}`", "access": "`access: {file: access.yaml}`"}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 the service failed, 2 the input was refused."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        status = arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"phosphene {arguments.command}: {_in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    assert isinstance(status, int)
    return status


def _in_words(error: Exception) -> str:
    """Say what is wrong; of values that pydantic refused, without its own terms and the address of its pages."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    faults = []
    for one in error.errors(include_url=False):
        name = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            faults.append(f"{name} is no setting here; check its spelling")
            continue
        said = one["msg"].removeprefix("Value error, ")
        simple = isinstance(one["input"], str | int | float) and "Value error" not in one["msg"]
        faults.append(": ".join(filter(None, (name, said))) + (f", got {one['input']!r}" if simple else ""))
    return "; ".join(faults)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="phosphene",
        description="Decode pictures from EEG and MEG epochs. Pictures are generated estimates, not photographs.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = _command(commands, "serve", _serve, "start the HTTP service and the web page", bundle=False)
    serve.add_argument("--bundle", type=Path, metavar="DIR", help="default: the settings', or the demo")
    serve.add_argument("--host", help="address to listen on (default: the settings', or 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: the settings', or 8000)")
    serve.add_argument("--access", metavar="FILE", help="ask for keys: the file that `phosphene users` wrote")
    serve.add_argument("--allow-open-network", action="store_true", help="UNSAFE: let other machines in without keys")
    serve.add_argument("--settings", type=Path, metavar="FILE", help="YAML of serving settings; flags win over it")

    serve.add_argument("--more-bundles", type=Path, nargs="+", default=[], metavar="DIR",
                       help="bundles that requests may name by their id")  # fmt: skip
    serve.add_argument(
        "--jobs", type=Path, metavar="DIR", help="folder that keeps jobs across restarts (default: the settings' or "
        "~/.local/state/phosphene/jobs)",
    )  # fmt: skip

    decode = _command(commands, "decode", _decode, "decode a recording without a server")
    decode.add_argument("file", type=Path, nargs="+", help="a recording, or an EEG and a MEG recording")
    decode.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and answer.json")
    decode.add_argument("--images", type=int, default=1, metavar="N", help="pictures per epoch")
    decode.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same pictures")
    decode.add_argument("--num-inference-steps", type=int, metavar="N", help="default: the bundle's")
    decode.add_argument("--guidance-scale", type=float, metavar="G", help="default: the bundle's")
    decode.add_argument("--average", action="store_true", help="average the epochs of one stimulus first")
    decode.add_argument("--subject", default="", help="a person the bundle knows, or one of --people")
    decode.add_argument("--people", default="", metavar="DIR", help="calibrations, as the setting people_folder")
    decode.add_argument("--onsets", default="", help="onsets of a continuous file in seconds, comma-separated")

    simulate = _command(commands, "simulate", _simulate, "write simulated recordings of scenes nobody was trained on")
    simulate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for one file per modality")
    simulate.add_argument("--scenes", type=int, default=6, metavar="N", help="pictures shown (default: %(default)s)")
    simulate.add_argument("--repetitions", type=int, default=4, metavar="N", help="presentations of each")
    simulate.add_argument("--subject", type=int, default=0, metavar="I", help="index of the simulated person")
    simulate.add_argument("--seed", type=int, default=0, metavar="S", help="seed of scenes and noise")
    simulate.add_argument("--format", choices=("npz", "fif"), default="npz")
    _data_option(simulate)

    evaluate = _command(commands, "evaluate", _evaluate, "print a bundle's scores and measure them again")
    evaluate.add_argument("--run-dir", type=Path, metavar="DIR", help="score a training on recorded data instead")
    evaluate.add_argument("--also", default="", metavar="A,B", help=ALSO_HELP)
    evaluate.add_argument("--stored", action="store_true", help="only print what the bundle says")
    evaluate.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the recordings' noise")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="also write report.json and .html (2 to 3 minutes)")
    evaluate.add_argument("--repetitions", type=int, default=8, metavar="N", help="of each picture, for --out")
    evaluate.add_argument("--pictures", action="store_true", help="judge decoded pictures too (minutes)")
    _data_option(evaluate)

    encoders = _command(commands, "encoders", _encoders, "list the encoders with size and source", bundle=False)
    encoders.add_argument("--presets", action="store_true", help="list the named sizes of each too")

    train = _command(commands, "train", _train, "train an encoder on the simulated study of the demo", bundle=False)
    train.add_argument("--encoder", metavar="NAME", help="a name of `phosphene encoders`; default: the config's")
    train.add_argument("--modality", action="append", default=[], metavar="M", help="eeg or meg; default: both, fused")
    train.add_argument("--config", type=Path, default=ENCODER_CONFIG, metavar="FILE", help="default: %(default)s")
    train.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="log, checkpoints, model, report")
    train.add_argument("--steps", type=int, metavar="N", help="optimizer steps; default: the config's")
    train.add_argument("--seed", type=int, metavar="S", help="of weights and order; default: the config's")
    _data_option(train)

    imported = _command(commands, "import", _import, "turn a published checkpoint into an encoder", bundle=False)
    imported.add_argument("kind", choices=("atm", "nice", "ubp", "neurobridge"), help="what the file is")
    imported.add_argument("file", type=Path, nargs="+", help="checkpoint of torch (.pth, .pt, .ckpt); nice has two")
    imported.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the encoder")
    imported.add_argument("--samples", type=int, metavar="N", help="samples per epoch, where the file does not tell")
    imported.add_argument(
        "--target", default="", metavar="NAME", help="image model, if not the publication's usual one"
    )

    embed = _command(commands, "embed", _embed, "embed a recording with an imported encoder", bundle=False)
    embed.add_argument("encoder", type=Path, metavar="DIR", help="folder that `phosphene import` wrote")
    embed.add_argument("file", type=Path, help="a recording of epochs")
    embed.add_argument("--out", type=Path, required=True, metavar="FILE", help="npz of embeddings")
    embed.add_argument("--subject", default="", help="a person the encoder knows, for example sub-01")
    embed.add_argument("--whiten", action="store_true", help="whiten by the recording's own noise covariance")

    plain = (add_data_commands, add_formats_command, add_user_commands, add_stream_command, add_erasure_command)
    for add_commands in plain:
        add_commands(lambda name, run, text: _command(commands, name, run, text, bundle=False))
    add_dataset_command(lambda name, run, text: _command(commands, name, run, text, bundle=False), DEMO_BUNDLE)

    demo = _command(commands, "demo", _demo, "start the service, decode simulated recordings, write out/demo.png")
    demo.add_argument("--out", type=Path, default=Path("out"), metavar="DIR")
    demo.add_argument("--scenes", type=int, default=6, metavar="N", help="pictures shown (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="seed of scenes, noise and pictures")
    _data_option(demo)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    bundle: bool = True,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    if bundle:
        command.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, metavar="DIR", help="default: the demo")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)
    return command


def _data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, default=DEMO_DATA, metavar="DIR", help="folder with the targets.safetensors of the bundle"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from serving.cluster import local_service
    from serving.settings import ServingSettings

    settings = ServingSettings.model_validate(_given_settings(arguments))
    _note(f"starting the service with bundle {settings.bundle} (10 to 30 s)")
    try:
        with _told_to_end() as stop, local_service(settings) as url:
            if arguments.json:
                print(json.dumps({"url": url, "bundle": str(settings.bundle)}), flush=True)
            _note(f"ready: web page {url}/  API {url}/v1/generations  (Ctrl-C ends it)")
            stop.wait()
            _note("ending the service")
    except RuntimeError as error:  # what Ray and its replicas say of themselves
        _note(f"phosphene serve: {error}")
        return 1
    return 0


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Yield what SIGINT and SIGTERM set, which do nothing else meanwhile."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)


def _given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Put the settings of a file and the flags together; what no flag says is left to the file."""
    from encoders.yaml_mapping import read_mapping

    given: dict[str, Any] = {"bundle": DEMO_BUNDLE}
    if arguments.settings is not None:
        given |= read_mapping(arguments.settings)
    flags = {"bundle": arguments.bundle, "host": arguments.host, "port": arguments.port}
    flags["more_bundles"] = tuple(arguments.more_bundles) or None
    given |= {name: value for name, value in flags.items() if value is not None}
    jobs, access = (_part(given, name) for name in ("jobs", "access"))
    if arguments.jobs is not None or "jobs" not in given:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        jobs["folder"] = str(arguments.jobs or state / "phosphene" / "jobs")
    flags = {"file": arguments.access, "allow_open_network": arguments.allow_open_network}
    access |= {name: value for name, value in flags.items() if value}
    return given | {"jobs": jobs, "access": access}


def _part(given: dict[str, Any], name: str) -> dict[str, Any]:
    part = given.get(name)
    if part is not None and not isinstance(part, dict):
        raise ValueError(f"the setting {name} is {part!r}, expected names and values; for instance {_PARTS[name]}")
    return dict(part or {})


def _decode(arguments: argparse.Namespace) -> int:
    from serving.decode import decode_files
    from serving.schema import GenerationFields

    names = ("images", "seed", "num_inference_steps", "guidance_scale", "average", "subject", "onsets")
    fields = GenerationFields(**{name: getattr(arguments, name) for name in names})
    answer = decode_files(arguments.bundle, arguments.file, fields, arguments.out, people_folder=arguments.people)
    if arguments.json:
        print((arguments.out / "answer.json").read_text())
        return 0
    for epoch in answer.epochs:
        nearest = epoch.neighbours[0]
        right = "" if epoch.probability is None else f"; chance that it is the right one: {epoch.probability:.2f}"
        print(
            f"epoch {epoch.index} {epoch.stimulus}: confidence {epoch.confidence:.3f} ({epoch.confidence_words}); "
            f"nearest: {nearest.caption or nearest.name} ({nearest.similarity:.2f}){right}"
        )
    if answer.report.calibration_words:
        print(answer.report.calibration_words)
    print(f"pictures and answer.json are in {arguments.out}. {answer.notice}")
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from serving.simulated import show_scenes

    shown = show_scenes(
        arguments.bundle,
        arguments.data,
        n_scenes=arguments.scenes,
        n_repetitions=arguments.repetitions,
        subject=arguments.subject,
        seed=arguments.seed,
    )
    files = shown.write(arguments.out, arguments.format)
    if arguments.json:
        print(json.dumps({"files": [str(file) for file in files], "captions": shown.captions}))
        return 0
    for file in files:
        print(f"wrote {file}")
    print(
        f"simulated person {arguments.subject + 1} looked at {arguments.scenes} scenes, {arguments.repetitions} x each"
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    also = tuple(name for name in arguments.also.split(",") if name)
    if arguments.run_dir is not None:
        return evaluate_run(arguments.run_dir, also=also, seed=arguments.seed, as_json=arguments.json)
    if also:
        raise ValueError("--also adapts to people of recorded data and needs --run-dir; leave it out for a bundle")
    from serving.evaluation import measured_scores, score_lines, stored_scores, write_report

    if arguments.stored and arguments.out is not None:
        raise ValueError("--stored measures nothing and --out writes what was measured; leave one of them out")
    scores: dict[str, object] = {"stored": stored_scores(arguments.bundle)}
    if not arguments.stored:
        _note("measuring the retrieval of every combination of modalities (10 to 20 s)")
        scores["measured"] = measured_scores(
            arguments.bundle, arguments.data, seed=arguments.seed, pictures=arguments.pictures
        )
    if arguments.out is not None:
        report = write_report(
            arguments.bundle, arguments.data, arguments.out, n_repetitions=arguments.repetitions, seed=arguments.seed
        )
        scores["report"] = {"n_figures": len(report.figures), "files": f"{arguments.out}/report.json, report.html"}
    print(json.dumps(scores) if arguments.json else "\n".join(score_lines(scores)))
    return 0


def _encoders(arguments: argparse.Namespace) -> int:
    from encoders.catalogue import REFERENCE_SHAPE, REFERENCE_WIDTH, catalogue

    entries = catalogue()
    if arguments.json:
        print(json.dumps([entry.to_json() for entry in entries]))
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:{width}}  {entry.n_parameters:>11,}  {entry.source}")
        if arguments.presets:
            print(f"{'':{width}}  {'':>11}  presets: {', '.join(entry.presets)}")
    shape = f"{REFERENCE_SHAPE.n_channels} channels x {REFERENCE_SHAPE.n_times} samples"
    print(f"{len(entries)} encoders; parameters for {shape}, one person, {REFERENCE_WIDTH} outputs")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from alignment.train import report_text, train
    from alignment.train_config import choose
    from encoders.yaml_mapping import read_mapping

    config = choose(
        read_mapping(arguments.config), encoder=arguments.encoder, modalities=arguments.modality,
        steps=arguments.steps, seed=arguments.seed, targets=arguments.data / "targets.safetensors",
    )  # fmt: skip
    report = train(config, arguments.run_dir)
    if arguments.json:
        print(json.dumps(report))
    elif report:
        print(report_text(report))
        print(f"model and report are in {arguments.run_dir}. {report['data']}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from serving.importing import import_files

    info = import_files(
        arguments.kind, arguments.file, arguments.out, n_times=arguments.samples, target_space=arguments.target
    )
    if arguments.json:
        print(info.model_dump_json())
        return 0
    wanted = info.input
    print(f"{info.design}: {wanted.n_channels} channels x {wanted.n_times} samples at {wanted.sfreq:g} Hz, whitened")
    print(f"space: {info.target_space}; people: {', '.join(info.subjects) or 'one network for everybody'}")
    print(f"wrote {arguments.out}; use it with: phosphene embed {arguments.out} RECORDING --out embeds.npz")
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    from encoders.imported_encoder import embed_epochs, save_embeds
    from encoders.part_bounds import own_files
    from encoders.readers import read_epochs

    with own_files():
        epochs = read_epochs(arguments.file)
    embeds, info = embed_epochs(arguments.encoder, epochs, subject=arguments.subject, whiten=arguments.whiten)
    save_embeds(arguments.out, embeds, epochs, info)
    told = {"n_epochs": len(embeds), "width": embeds.shape[1], "target_space": info.target_space}
    told["file"] = str(arguments.out)
    if arguments.json:
        print(json.dumps(told))
    else:
        print(f"wrote {len(embeds)} embeddings of width {embeds.shape[1]} ({info.target_space}) to {arguments.out}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from serving.demo import run_demo

    result = run_demo(
        arguments.bundle, arguments.data, arguments.out, n_scenes=arguments.scenes, seed=arguments.seed, note=_note
    )
    print(json.dumps(result.to_json()) if arguments.json else result.text())
    return 0


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
