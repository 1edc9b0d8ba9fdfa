from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest

from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.modality import MODALITIES
from encoders.readers import read_epochs
from encoders.sensors import (
    HEAD_CENTRE,
    SensorLayout,
    channel_key,
    layout_info,
    layout_positions_2d,
    match_channels,
    standard_layout,
)

LAYOUTS = [("things_eeg2_63", 63), ("ctf275", 274), ("neuromag306", 306)]


def smooth_field(layout: SensorLayout, n_epochs: int = 2, n_times: int = 20) -> SignalEpochs:
    """Potentials of random shallow polynomials of position: what interpolation should be able to fill in."""
    rng = np.random.default_rng(0)
    xyz = layout.positions.astype(np.float64) - HEAD_CENTRE
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    basis = np.column_stack([xyz, xyz[:, :1] * xyz[:, 1:2], xyz[:, 1:2] * xyz[:, 2:]])
    data = np.einsum("cb,ebt->ect", basis, rng.standard_normal((n_epochs, basis.shape[1], n_times)))
    return SignalEpochs(data * 1e-5, 100.0, 0.0, layout.ch_names, layout.ch_types, layout.positions)


@pytest.mark.parametrize(("name", "n_channels"), LAYOUTS)
def test_layouts_have_their_sensors_outside_the_head_sphere(name: str, n_channels: int) -> None:
    layout = standard_layout(name)
    assert layout.n_channels == len(set(layout.ch_names)) == n_channels
    assert layout.positions.shape == (n_channels, 3)
    assert layout.positions.dtype == np.float32
    distance = np.linalg.norm(layout.positions - np.asarray(HEAD_CENTRE), axis=1)
    assert (distance.min() > 0.09) or layout.ch_types[0] == "eeg"
    assert 0.08 < distance.min() <= distance.max() < 0.15
    left, right = (np.asarray(layout.positions)[[n in names for n in layout.ch_names]] for names in _SIDES[name])
    assert (left[:, 0] < 0).all() and (right[:, 0] > 0).all()


_SIDES = {
    "things_eeg2_63": (("T7", "O1"), ("T8", "O2")),
    "ctf275": (("MLT14", "MLO22"), ("MRT14", "MRO22")),
    "neuromag306": (("MEG 0111",), ("MEG 1421",)),
}


def test_things_layout_has_the_published_order(shared_data: Path) -> None:
    published = (shared_data / "metadata" / "things_eeg2_channels_63.txt").read_text().split()
    assert list(standard_layout("things_eeg2_63").ch_names) == published


def test_unknown_layout_is_named() -> None:
    with pytest.raises(ValueError, match="ctf275"):
        standard_layout("biosemi")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "n_channels"), LAYOUTS)
def test_json_round_trip_is_exact(name: str, n_channels: int) -> None:
    layout = standard_layout(name)
    again = SensorLayout.from_json(layout.to_json())
    np.testing.assert_array_equal(again.positions, layout.positions)
    assert (again.name, again.ch_names, again.ch_types) == (layout.name, layout.ch_names, layout.ch_types)


@pytest.mark.parametrize(("name", "n_channels"), LAYOUTS)
def test_layout_info_carries_the_layout(name: str, n_channels: int) -> None:
    layout = standard_layout(name)
    info = layout_info(layout, 250.0)
    assert tuple(info.ch_names) == layout.ch_names
    assert tuple(info.get_channel_types()) == layout.ch_types
    assert info["sfreq"] == 250.0
    places = np.stack([ch["loc"][:3] for ch in info["chs"]])
    if info["dev_head_t"] is not None:
        places = mne.transforms.apply_trans(info["dev_head_t"], places)
    np.testing.assert_allclose(places, layout.positions, atol=1e-6)


def test_part_of_a_helmet_is_a_layout_too() -> None:
    whole = standard_layout("ctf275")
    part = SensorLayout("left", whole.ch_names[:100], whole.ch_types[:100], whole.positions[:100])
    assert layout_info(part, 100.0).ch_names == list(part.ch_names)
    with pytest.raises(ValueError, match="no known helmet"):
        layout_info(replace(part, ch_names=tuple(f"M{i}" for i in range(100))), 100.0)


def test_helmets_of_the_modality_table_exist() -> None:
    for modality in MODALITIES.values():
        for helmet in modality.helmets:
            assert mne.channels.read_meg_canonical_info(helmet).ch_names


@pytest.mark.parametrize(("name", "n_channels"), LAYOUTS)
def test_flat_map(name: str, n_channels: int) -> None:
    positions = standard_layout(name).positions
    flat = layout_positions_2d(positions)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal([flat.min(axis=0), flat.max(axis=0)], [[0, 0], [1, 1]])
    order = np.random.default_rng(0).permutation(n_channels)
    np.testing.assert_array_equal(layout_positions_2d(positions[order]), flat[order])


def test_flat_map_keeps_neighbours_and_marks_unknown_sensors() -> None:
    layout = standard_layout("things_eeg2_63")
    positions = layout.positions.copy()
    positions[3] = np.nan
    flat = dict(zip(layout.ch_names, layout_positions_2d(positions), strict=True))
    np.testing.assert_allclose(flat["AF3"], -0.1)
    assert flat["O1"][1] < flat["Pz"][1] < flat["Cz"][1] < flat["AFz"][1]
    assert flat["T7"][0] < flat["C3"][0] < flat["Cz"][0] < flat["C4"][0] < flat["T8"][0]
    np.testing.assert_allclose(layout_positions_2d(np.full((4, 3), np.nan)), -0.1)
    np.testing.assert_array_equal(layout_positions_2d(layout.positions[:1]), [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("FP1", "Fp1"),
        ("Fp1.", "Fp1"),
        ("Fc5..", "FC5"),
        (" fp1 ", "Fp1"),
        ("EEG Fp1-REF", "Fp1"),
        ("EEG FP1", "Fp1"),
        ("EEG Fp1-LE", "Fp1"),
        ("Fp1-A1", "Fp1"),
        ("Fp1-A2", "Fp1"),
        ("Cz-M1", "Cz"),
        ("C3-A1A2", "C3"),
        ("C3-Avg", "C3"),
        ("C3-AR", "C3"),
        ("T3", "T7"),
        ("EEG T4-Ref", "T8"),
        ("t5", "P7"),
        ("T6.", "P8"),
        ("MLC11-1609", "MLC11"),
        ("MLC11-2908", "MLC11"),
        ("MEG0113", "MEG 0113"),
        ("MEG 0113", "MEG 0113"),
    ],
)
def test_spellings_of_one_sensor(written: str, meant: str) -> None:
    assert channel_key(written) == channel_key(meant)


@pytest.mark.parametrize(("one", "other"), [("C3", "C4"), ("C3-C4", "C3"), ("MEG 0113", "MEG 0112"), ("EEG 001", "1")])
def test_different_sensors_stay_apart(one: str, other: str) -> None:
    assert channel_key(one) != channel_key(other)


@pytest.mark.parametrize(("name", "n_channels"), LAYOUTS)
def test_keys_are_unique_within_a_layout(name: str, n_channels: int) -> None:
    assert len({channel_key(ch_name) for ch_name in standard_layout(name).ch_names}) == n_channels


def test_order_and_spelling_do_not_matter() -> None:
    layout = standard_layout("things_eeg2_63")
    epochs = smooth_field(layout)
    order = np.random.default_rng(1).permutation(63)
    shuffled = epochs.pick([layout.ch_names[i] for i in order])
    old = {"T7": "T3", "T8": "T4", "P7": "T5", "P8": "T6"}
    shuffled = replace(shuffled, ch_names=tuple(f"EEG {old.get(n, n).upper()}-REF" for n in shuffled.ch_names))
    match = match_channels(shuffled, layout)
    np.testing.assert_array_equal(match.epochs.data, epochs.data)
    assert match.epochs.ch_names == layout.ch_names
    assert match.interpolated == match.dropped == ()


def test_order_does_not_matter_with_missing_channels_either() -> None:
    layout = standard_layout("things_eeg2_63")
    epochs = smooth_field(layout).pick(layout.ch_names[4:])
    permuted = epochs.pick(epochs.ch_names[::-1])
    np.testing.assert_array_equal(
        match_channels(permuted, layout).epochs.data, match_channels(epochs, layout).epochs.data
    )


def test_extra_channels_are_dropped_and_reported() -> None:
    layout = standard_layout("things_eeg2_63")
    epochs = smooth_field(layout)
    more = SignalEpochs(
        np.concatenate([epochs.data, epochs.data[:, :2]], axis=1),
        100.0,
        0.0,
        (*epochs.ch_names, "VEOG", "EXG5"),
        (*epochs.ch_types, "eeg", "eeg"),
        np.concatenate([epochs.positions, np.full((2, 3), np.nan)]),
    )
    match = match_channels(more, layout)
    assert match.dropped == ("VEOG", "EXG5")
    np.testing.assert_array_equal(match.epochs.data, epochs.data)


@pytest.mark.parametrize(
    "missing", [("Cz",), ("O1", "PO7", "F3", "C4"), tuple("AF7 F5 FC1 C5 CP3 P1 PO3 Oz CP4 C6".split())]
)
def test_interpolation_is_mnes(missing: tuple[str, ...]) -> None:
    layout = standard_layout("things_eeg2_63")
    epochs = smooth_field(layout)
    match = match_channels(epochs.pick([name for name in layout.ch_names if name not in missing]), layout)
    assert match.interpolated == tuple(name for name in layout.ch_names if name in missing)
    rows = [layout.ch_names.index(name) for name in missing]
    info = layout_info(layout, 100.0)
    info["bads"] = list(missing)
    oracle = mne.EpochsArray(epochs.data.astype(np.float64), info, verbose="error")
    oracle.interpolate_bads(origin="auto", verbose="error")
    got, truth = match.epochs.data[:, rows], epochs.data[:, rows]
    assert np.corrcoef(got.ravel(), oracle.get_data(copy=True)[:, rows].ravel())[0, 1] > 0.9999
    assert np.corrcoef(got.ravel(), truth.ravel())[0, 1] > 0.98
    untouched = [i for i in range(63) if i not in rows]
    np.testing.assert_array_equal(match.epochs.data[:, untouched], epochs.data[:, untouched])


def test_too_many_missing_channels_are_listed() -> None:
    layout = standard_layout("things_eeg2_63")
    epochs = smooth_field(layout)
    assert match_channels(epochs.pick(layout.ch_names[15:]), layout).interpolated == layout.ch_names[:15]
    with pytest.raises(EpochsMismatch, match="only 47 of the 63 .*at least 48.*Fp1, Fp2, AF7, .*FT9") as caught:
        match_channels(epochs.pick(layout.ch_names[16:]), layout)
    assert "O2, " not in str(caught.value).split("missing:")[1].split(";")[0]


@pytest.mark.parametrize("names", [("T7", "T3"), ("Cz-0", "Cz-1"), ("O1", "EEG O1-REF")])
def test_two_channels_for_one_sensor_are_refused(names: tuple[str, str]) -> None:
    layout = standard_layout("things_eeg2_63")
    others = [name for name in layout.ch_names if name not in ("T7", "Cz", "O1")]
    epochs = replace(smooth_field(layout).pick(["Cz", "O1", *others]), ch_names=(*names, *others))
    with pytest.raises(EpochsMismatch, match="both stand for sensor"):
        match_channels(epochs, layout)


def test_refusals_do_not_repeat_names_that_shout() -> None:
    layout = standard_layout("things_eeg2_63")
    shout = 'Traceback: File "/app/x.py", <img src=x>'
    epochs = replace(smooth_field(layout).pick(["Cz", "O1"]), ch_names=(shout, "O1"))
    with pytest.raises(EpochsMismatch, match=r"channels are \(text of 40 characters\), 'O1'") as caught:
        match_channels(epochs, layout)
    assert "Traceback" not in str(caught.value)


def test_a_wrong_channel_type_is_refused() -> None:
    layout = standard_layout("ctf275")
    epochs = replace(smooth_field(layout), ch_types=("eeg",) * 274)
    with pytest.raises(EpochsMismatch, match="type 'eeg'.*'mag'"):
        match_channels(epochs, layout)


def test_real_meg_recordings_match_their_helmets(shared_data: Path) -> None:
    formats = shared_data / "formats"
    ctf = read_epochs(formats / "ctf_fif" / "ctf275_comp_raw.fif", onsets=[0.2], tmin=-0.1, tmax=0.1)
    assert set(ctf.ch_names) & {"MLC11-2908"}
    match = match_channels(ctf, standard_layout("ctf275"))
    assert match.interpolated == match.dropped == ()
    averages = read_epochs(formats / "neuromag_fif" / "evoked_4cond-ave.fif.gz").pick_types("mag", "grad")
    layout = standard_layout("neuromag306")
    match = match_channels(averages, layout)
    assert match.interpolated == match.dropped == ()
    missing = ("MEG 0231", "MEG 1311", "MEG 1741")  # gradiometers at the rim are beyond MNE's interpolation, too
    filled = match_channels(averages.pick([name for name in averages.ch_names if name not in missing]), layout)
    for name in missing:
        pair = [epochs.pick([name]).data.ravel() for epochs in (filled.epochs, match.epochs)]
        assert np.corrcoef(pair)[0, 1] > 0.8
