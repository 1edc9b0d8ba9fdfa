"""Commands of `phosphene` for data on disk: from a public data set to a trained and evaluated model."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.bundle_command import AddCommand, add_bundle_command

LAYOUTS = (
    "things_eeg2_raw", "things_eeg2_epochs", "things_eeg2_sessions", "ubp", "neurobridge", "things_eeg1",
    "things_meg_raw", "things_meg_epochs", "things_meg_pickles", "alljoined", "alljoined1", "bids", "own_lab",
)  # fmt: skip


def add_data_commands(add: AddCommand) -> None:
    """Declare the commands; ``add(name, run, text)`` makes one."""
    convert = add("convert", _convert, "turn a data set on disk into a store of epochs; run again to go on")
    convert.add_argument("layout", choices=LAYOUTS, help="how the data set lies on disk")
    convert.add_argument("root", type=Path, help="its folder")
    convert.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder for the store")
    convert.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the layout, as YAML")
    convert.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")

    features = add("features", _features, "embed the pictures of stores once, and write the table of targets")
    features.add_argument("images", type=Path, help="folder of pictures")
    features.add_argument("--store", action="append", required=True, metavar="STORE", help="may be repeated")
    features.add_argument("--space", required=True, metavar="NAME", help="of the embeddings, or YAML of a spec")
    features.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors table of targets")
    features.add_argument("--cache", type=Path, default=Path("out/features"), metavar="DIR", help="embeddings so far")

    prepare = add("prepare", _prepare, "split and preprocess stores for training; run again to go on")
    prepare.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML with recorded data")
    prepare.add_argument("--modality", action="append", default=[], metavar="M", help="only this one; may be repeated")
    prepare.add_argument("--subject", action="append", default=[], metavar="NAME", help="train on these people")
    prepare.add_argument("--held-out", action="append", default=[], metavar="NAME", help="leave these people out")
    prepare.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")

    add_bundle_command(add)

    search = add("search", _search, "search over settings of a training; run again, or several times, to go on")
    search.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML of a training")
    search.add_argument("--space", type=Path, required=True, metavar="FILE", help="YAML as in configs/search.yaml")
    search.add_argument("--run-dir", type=Path, required=True, metavar="DIR")
    search.add_argument("--trials", type=int, required=True, metavar="N", help="in all, earlier ones counted")
    search.add_argument("--storage", default="", metavar="URL", help="of a shared database; default: in the run dir")
    search.add_argument("--modality", action="append", default=[], metavar="M", help="only this one; may be repeated")
    search.add_argument("--check-top", type=int, default=0, metavar="N", help="train the best N on all data too")

    calibrate = add("calibrate", _calibrate, "adapt retrieval to a new person, without or with labels")
    calibrate.add_argument("--model", type=Path, required=True, metavar="DIR", help="<run dir>/brain")
    given = calibrate.add_mutually_exclusive_group(required=True)
    given.add_argument("--recording", type=Path, metavar="FILE", help="epochs of the person")
    given.add_argument("--store", metavar="STORE", help="store with training epochs of the person")
    calibrate.add_argument("--split", default="train", help="of the store; '' where it has none (default: train)")
    calibrate.add_argument("--subject", required=True, metavar="NAME", help="the person, and the name of the files")
    calibrate.add_argument("--targets", type=Path, metavar="FILE", help="table of targets, for --labelled")
    calibrate.add_argument("--labelled", action="store_true", help="use what was shown (few-shot)")
    calibrate.add_argument("--out", type=Path, required=True, metavar="DIR", help="not inside a bundle")


def evaluate_run(run_dir: Path, *, also: Sequence[str], seed: int, as_json: bool) -> int:
    """Score a run on recorded test pictures; writes ``report.json`` and ``report.html`` into its folder."""
    from alignment.recorded_evaluation import evaluate_recorded
    from alignment.report_page import write_page
    from alignment.report_summary import summary_lines
    from alignment.train_config import read_run_config

    report = evaluate_recorded(read_run_config(run_dir), run_dir / "brain", also=also, seed=seed, progress=True)
    folder = run_dir / "evaluation"
    folder.mkdir(exist_ok=True)
    report.write(folder / "report.json")
    write_page(report, folder / "report.html")
    print(report.model_dump_json() if as_json else "\n".join([*summary_lines(report), f"report is in {folder}"]))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from encoders.dataset_sources import open_source
    from encoders.store_build import build_store
    from encoders.yaml_mapping import parse_yaml

    options: dict[str, Any] = {}
    for one in arguments.option:
        name, equals, value = one.partition("=")
        if not equals:
            raise ValueError(f"--option {one!r} has no value, expected NAME=VALUE, for example tmax=0.8")
        options[name] = parse_yaml(value, f"--option {one!r}")
    source = open_source(arguments.layout, arguments.root, **options)
    settings = json.dumps({"layout": arguments.layout, **options}, sort_keys=True)
    store = build_store(source, arguments.out, n_workers=arguments.workers, progress=True, settings=settings)
    info = store.info
    told = {"store": str(arguments.out), "n_epochs": len(store), "n_channels": len(info.ch_names),
            "n_times": info.n_times, "sfreq": info.sfreq}  # fmt: skip
    text = f"{len(store)} epochs of {len(info.ch_names)} channels x {info.n_times} samples at {info.sfreq:g} Hz"
    return _say(arguments, told, f"{text} in {arguments.out}")


def _features(arguments: argparse.Namespace) -> int:
    from alignment.image_spaces import open_space
    from alignment.shown_pictures import embed_shown
    from alignment.target_table import write_target_table
    from encoders.yaml_mapping import parse_yaml

    spec = parse_yaml(arguments.space, "--space")
    table = embed_shown(open_space(spec), arguments.images, arguments.store, arguments.cache, progress=True)
    table = dataclasses.replace(table, spec=json.dumps(spec))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_target_table(arguments.out, table)
    told = {"targets": str(arguments.out), "n_pictures": len(table), "width": table.embeds.shape[1]}
    return _say(arguments, told, f"{len(table)} pictures, embeddings of {table.embeds.shape[1]}, in {arguments.out}")


def _prepare(arguments: argparse.Namespace) -> int:
    from alignment.recorded_sources import prepare
    from alignment.train_config import choose
    from encoders.yaml_mapping import read_mapping

    config = choose(
        read_mapping(arguments.config), modalities=arguments.modality, subjects=arguments.subject,
        held_out=arguments.held_out,
    )  # fmt: skip
    folder, splits = prepare(config, n_workers=arguments.workers, progress=True)
    n = {split: len(images) for split, images in splits.images.items()}
    text = f"pictures: {n['train']} to train, {n['val']} to select, {n['test']} to test, none in two splits"
    return _say(arguments, {"folder": str(folder), "n_pictures": n, "n_dropped": splits.n_dropped}, f"{text}; {folder}")


def _search(arguments: argparse.Namespace) -> int:
    from alignment.search import read_settings, search, search_text
    from alignment.train_config import choose
    from encoders.yaml_mapping import read_mapping

    config = choose(read_mapping(arguments.config), modalities=arguments.modality)
    report = search(
        config, read_settings(arguments.space), arguments.run_dir, arguments.trials, storage=arguments.storage,
        n_check=arguments.check_top,
    )  # fmt: skip
    return _say(arguments, report, f"{search_text(report)}\nbest settings: {arguments.run_dir / 'best.yaml'}")


def _calibrate(arguments: argparse.Namespace) -> int:
    from alignment.brain_model import BrainModel
    from alignment.person_calibration import calibrate_label_free, calibrate_labelled, person_epochs
    from alignment.person_map import save_person
    from alignment.target_table import read_target_table
    from encoders.part_bounds import own_files
    from encoders.readers import read_epochs
    from encoders.store import EpochStore

    if arguments.labelled and arguments.targets is None:
        raise ValueError("--labelled needs --targets: it asks what was shown")
    model = BrainModel.load(arguments.model)
    if arguments.store:
        epochs = person_epochs(EpochStore.open(arguments.store), arguments.subject, arguments.split)
    else:
        with own_files():
            epochs = read_epochs(arguments.recording)
    source = str(arguments.store or arguments.recording)
    if arguments.labelled:
        person = calibrate_labelled(model, epochs, read_target_table(arguments.targets), source=source)
    else:
        person = calibrate_label_free(model, epochs, source=source)
    path = save_person(arguments.out, arguments.subject, person, arguments.model)
    return _say(arguments, {"file": str(path), "provenance": str(person.provenance)}, f"{path}: {person.provenance}")


def _say(arguments: argparse.Namespace, told: Any, text: str) -> int:
    print(json.dumps(told) if arguments.json else text)
    return 0
