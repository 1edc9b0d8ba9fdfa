"""`phosphene bundle`: from a training on recorded data, or a study of categories, to what `serve` and `decode` take."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
NO_GENERATOR = "none"


def add_bundle_command(add: AddCommand) -> None:
    """Declare the command; ``add(name, run, text)`` makes one."""
    bundle = add("bundle", _bundle, "make a bundle for serve and decode of a training on recorded data, or of a study")
    made_of = bundle.add_mutually_exclusive_group(required=True)
    made_of.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of a training on recorded data")
    made_of.add_argument("--study", type=Path, metavar="FILE", help="YAML as configs/real_things_eeg1.yaml; trains too")
    bundle.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="folder of pictures to answer with")
    bundle.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the bundle appears")
    bundle.add_argument("--replace", action="store_true", help="let a bundle that is there give way")
    bundle.add_argument("--thumb-size", type=int, default=128, metavar="N", help="of gallery pictures, in pixels")

    run = bundle.add_argument_group("with --run-dir")
    run.add_argument(
        "--generator", metavar="G", help=f"diffusers folder or hub id; {NO_GENERATOR}: answer with gallery pictures"
    )
    run.add_argument("--space", default="", metavar="NAME", help="of the targets, where their table does not say it")
    run.add_argument("--cache", type=Path, default=Path("out/features"), metavar="DIR", help="embeddings so far")

    study = bundle.add_argument_group("with --study")
    study.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    study.add_argument("--pictures", type=Path, metavar="FILE", help="YAML as configs/gallery_things_eeg1.yaml")
    study.add_argument(
        "--leave-out", action="append", default=[], metavar="PERSON", help="not trained on; may be repeated"
    )
    study.add_argument("--recordings", type=Path, metavar="DIR", help="write epochs of those left out here, to decode")


def _bundle(arguments: argparse.Namespace) -> int:
    return _of_run(arguments) if arguments.run_dir is not None else _of_study(arguments)


def _of_run(arguments: argparse.Namespace) -> int:
    from encoders.yaml_mapping import parse_yaml
    from generation.run_bundle import GalleryRequest, bundle_of_run

    _needs(arguments, "--run-dir", ("generator",), ("data", "pictures", "leave_out", "recordings"))
    space = json.dumps(parse_yaml(arguments.space, "--space")) if arguments.space else ""
    bundle = bundle_of_run(
        arguments.run_dir,
        GalleryRequest(arguments.gallery, space, arguments.cache, arguments.thumb_size),
        arguments.out,
        generator="" if arguments.generator == NO_GENERATOR else arguments.generator,
        replace=arguments.replace,
        progress=True,
    )
    return _say(arguments, bundle, {})


def _of_study(arguments: argparse.Namespace) -> int:
    from alignment.erp_study import ErpStudyConfig
    from alignment.evaluation_report import figure_line
    from encoders.yaml_mapping import read_mapping
    from generation.category_bundle import bundle_of_study, person_files

    _needs(arguments, "--study", ("data", "pictures"), ("generator", "space"))
    if arguments.recordings is not None and not arguments.leave_out:
        raise ValueError("--recordings writes the epochs of people left out, and nobody is; add --leave-out PERSON")
    bundle, trained = bundle_of_study(
        ErpStudyConfig.model_validate(read_mapping(arguments.study)),
        arguments.data,
        arguments.gallery,
        read_mapping(arguments.pictures),
        arguments.out,
        leave_out=arguments.leave_out,
        size=arguments.thumb_size,
        replace=arguments.replace,
    )
    told: dict[str, Any] = {"left_out": [one.subject for one in trained.left_out]}
    if arguments.recordings is not None:
        told["recordings"] = [str(path) for path in person_files(trained.left_out, arguments.recordings)]
    if not arguments.json:
        print("\n".join(figure_line(one) for one in trained.result.figures))
    return _say(arguments, bundle, told)


def _needs(arguments: argparse.Namespace, kind: str, needed: tuple[str, ...], foreign: tuple[str, ...]) -> None:
    missing = [name for name in needed if not getattr(arguments, name)]
    if missing:
        raise ValueError(f"{kind} needs --{missing[0].replace('_', '-')}; see phosphene bundle --help")
    useless = [name for name in foreign if getattr(arguments, name)]
    if useless:
        raise ValueError(f"--{useless[0].replace('_', '-')} has no effect with {kind}; leave it out")


def _say(arguments: argparse.Namespace, bundle: Any, told: dict[str, Any]) -> int:
    manifest = bundle.manifest
    told = {
        "bundle": str(bundle.folder), "id": manifest.id, "modalities": manifest.modalities,
        "people": len(manifest.subjects), "decoder": manifest.decoder, "data": manifest.data_statement,
        "scores": manifest.scores, **told,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(told))
        return 0
    print(f"bundle {manifest.id[:12]} is in {bundle.folder}. {manifest.data_statement}")
    print(f"use it with: phosphene decode RECORDING --bundle {bundle.folder} --out out/decoded")
    return 0
