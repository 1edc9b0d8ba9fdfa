"""`phosphene decode-dataset`: every epoch of a data set to pictures and one table."""

import argparse
import json
from pathlib import Path

from serving.bundle_command import AddCommand


def add_dataset_command(add: AddCommand, bundle: Path) -> None:
    """Declare the command; ``add(name, run, text)`` makes one, `bundle` is the default."""
    text = "decode every epoch of a store, a -epo.fif file or a folder of them; run again to go on"
    decode = add("decode-dataset", _decode, text)
    decode.add_argument("source", type=Path, help="a store of `phosphene convert`, a -epo.fif file, or a folder")
    decode.add_argument("--out", type=Path, required=True, metavar="DEST", help="pictures and epochs.parquet")
    decode.add_argument("--bundle", type=Path, default=bundle, metavar="DIR", help="default: the demo")
    decode.add_argument("--address", default="local", metavar="A", help="of a Ray cluster, or auto (default: local)")
    decode.add_argument("--workers", type=int, default=1, metavar="N", help="decoders, one core each (default: 1)")
    decode.add_argument("--images", type=int, default=1, metavar="N", help="pictures per epoch")
    decode.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same pictures")
    decode.add_argument("--num-inference-steps", type=int, metavar="N", help="default: the bundle's")
    decode.add_argument("--guidance-scale", type=float, metavar="G", help="default: the bundle's")
    decode.add_argument("--block", type=int, default=32, metavar="N", help="epochs per block (default: %(default)s)")


def _decode(arguments: argparse.Namespace) -> int:
    from serving.dataset_block import DatasetSettings
    from serving.dataset_run import decode_dataset

    if arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}, expected at least 1; give a number of cores")
    settings = DatasetSettings(
        seed=arguments.seed,
        images=arguments.images,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        block_epochs=arguments.block,
    )
    result = decode_dataset(
        arguments.source, arguments.bundle, arguments.out, settings,
        address=arguments.address, n_workers=arguments.workers,
    )  # fmt: skip
    told = {"table": str(result.table), "n_epochs": result.n_epochs, "n_refused": result.n_refused,
            "n_blocks": result.n_blocks, "n_blocks_before": result.n_blocks_before}  # fmt: skip
    text = f"{result.n_epochs} epochs, {result.n_refused} of them refused; table {result.table}"
    print(json.dumps(told) if arguments.json else text)
    return 0
