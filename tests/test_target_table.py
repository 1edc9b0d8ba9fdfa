from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignment.target_table import TargetTable, read_target_table, write_target_table


def table() -> TargetTable:
    embeds = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    return TargetTable(
        images=("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "b/2 copy.jpg", "word only"),
        concepts=("a", "a", "b", "b", "b", "c"),
        digests=("h1", "h2", "h3", "h4", "h4", ""),
        embeds=embeds,
        space="digest of the space",
    )


def test_round_trip(tmp_path: Path) -> None:
    write_target_table(tmp_path / "targets.safetensors", table())
    back = read_target_table(tmp_path / "targets.safetensors")
    assert np.array_equal(back.embeds, table().embeds) and back.space == table().space
    assert (back.images, back.concepts, back.digests) == (table().images, table().concepts, table().digests)


def test_index() -> None:
    assert table().index(["b/1.jpg", "a/1.jpg", "b/1.jpg"]).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"1 of 2 pictures are not among the 6 targets, the first \['z'\]"):
        table().index(["z", "a/1.jpg", "z"])


def test_splits_may_share_neither_picture_nor_copy_nor_concept() -> None:
    targets = table()
    targets.check_disjoint({"train": ["a/1.jpg", "a/2.jpg"], "test": ["b/1.jpg"], "val": ["word only"]})
    for splits, said in (
        ({"train": ["a/1.jpg"], "test": ["b/1.jpg", "a/1.jpg"]}, "1 image ids are in both train and test"),
        ({"train": ["a/1.jpg"], "test": ["a/2.jpg"]}, "1 concepts are in both"),
        ({"train": ["b/2.jpg"], "test": ["b/2 copy.jpg"]}, "sha256"),
    ):
        with pytest.raises(ValueError, match=said):
            targets.check_disjoint(splits)
    targets.check_disjoint({"train": ["a/1.jpg"], "test": ["a/2.jpg"]}, by_concept=False)
    with pytest.raises(ValueError, match="sha256"):
        targets.check_disjoint({"train": ["b/2.jpg"], "test": ["b/2 copy.jpg"]}, by_concept=False)
    unknown = replace(targets, concepts=("", *targets.concepts[1:]))
    with pytest.raises(ValueError, match="have no concept"):
        unknown.check_disjoint({"train": ["a/1.jpg"]})


def test_refusals(tmp_path: Path) -> None:
    good = table()
    with pytest.raises(ValueError, match="one length"):
        replace(good, concepts=good.concepts[:2])
    with pytest.raises(ValueError, match="more than once"):
        replace(good, images=("a/1.jpg", *good.images[:5]))
    with pytest.raises(ValueError, match="non-finite"):
        replace(good, embeds=good.embeds * np.nan)
    with pytest.raises(ValueError, match="one concept"):
        replace(good, concepts=("a", "a", "b", "b", "other", "c"))
    save_file({"embeds": good.embeds}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['images'"):
        read_target_table(tmp_path / "x.safetensors")
