"""The MEG pickles of ATM, whose pictures the table of the data set names."""

import pickle
from pathlib import Path

import numpy as np
from public_layouts import TEST_IMAGES, TRAIN_IMAGES, all_blocks, whitened

from encoders.datasets.things_meg_pickles import ThingsMegPickles
from encoders.datasets.things_meg_sensors import things_meg_ch_names


def test_arrays_follow_the_image_number(tmp_path: Path) -> None:
    names = [f"{name}-1609" for name in things_meg_ch_names()]
    times = np.linspace(0, 1, 201)
    folder = tmp_path / "preprocessed_npy" / "sub-01"
    folder.mkdir(parents=True)
    data = {
        "training": whitened(18, 1, 271, 201).reshape(6, 3, 1, 271, 201),
        "zs_test": whitened(4, 12, 271, 201).reshape(4, 1, 12, 271, 201),
    }
    for name, array in data.items():
        content = {"meg_data": array, "ch_names": names, "times": times}
        (folder / f"preprocessed_meg_{name}.pkl").write_bytes(pickle.dumps(content, 4))
    lines = [f"exp,{10 * i},images_meg/{image}" for i, image in enumerate(TRAIN_IMAGES)]
    lines += [f"exp,{500 + i},images_meg/{image.replace('06s', '01s')}" for i, image in enumerate(TEST_IMAGES)]
    lines += [f"test,{10 * i + 5},images_test_meg/{image.split('/')[1]}" for i, image in enumerate(TEST_IMAGES)] * 12
    lines += ["catch,999999,images_catch_meg/catch001.jpg"] * 3
    order = np.random.default_rng(0).permutation(len(lines))
    table = tmp_path / "sample_attributes_P1.csv"
    table.write_text("\n".join(["trial_type,things_image_nr,image_path", *(lines[i] for i in order)]) + "\n")
    source = ThingsMegPickles(root=folder.parent, images=table).source()
    assert source.dataset == "things_meg"
    read = all_blocks(source)
    for name, key, images, n in (("train", "training", TRAIN_IMAGES, 1), ("test", "zs_test", TEST_IMAGES, 12)):
        got, columns, blocks = read[f"sub-01_{name}"]
        np.testing.assert_allclose(got, data[key].reshape(-1, 271, 201) * 1e-14, rtol=1e-6)
        assert columns["image"] == [image for image in images for _ in range(n)]
        assert (blocks[0][0].sfreq, blocks[0][0].tmin) == (200.0, 0.0)
        assert blocks[0][0].ch_names == things_meg_ch_names()
