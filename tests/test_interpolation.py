import mne
import numpy as np
import pytest

from encoders.epochs import SignalEpochs
from encoders.sensors import HEAD_CENTRE, layout_info, match_channels, standard_layout


def dipole_fields(layout_name: str, n_dipoles: int = 30) -> SignalEpochs:
    """Noiseless fields of tangential 10 nAm dipoles at several depths, one per sample."""
    layout = standard_layout(layout_name)
    rng = np.random.default_rng(0)
    outward = rng.standard_normal((n_dipoles, 3))
    outward[:, 2] = np.abs(outward[:, 2])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    places = np.asarray(HEAD_CENTRE) + outward * rng.uniform(0.04, 0.075, (n_dipoles, 1))
    sphere = mne.make_sphere_model(HEAD_CENTRE, 0.09, verbose="error")
    sources = mne.setup_volume_source_space(pos={"rr": places, "nn": outward}, sphere=sphere, verbose="error")
    info = layout_info(layout, 100.0)
    forward = mne.make_forward_solution(info, None, sources, sphere, eeg=False, mindist=0.0, verbose="error")
    rows = [forward["sol"]["row_names"].index(name) for name in layout.ch_names]
    gain = forward["sol"]["data"][rows].reshape(len(rows), n_dipoles, 3)
    tangent = np.cross(outward, rng.standard_normal((n_dipoles, 3)))
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    data = 1e-8 * np.einsum("cdx,dx->cd", gain, tangent)[None]
    return SignalEpochs(data, 100.0, 0.0, layout.ch_names, layout.ch_types, layout.positions)


@pytest.mark.parametrize("layout_name", ["ctf275", "neuromag306"])
@pytest.mark.parametrize("every", [90, 5])
def test_missing_meg_sensors_follow_the_field(layout_name: str, every: int) -> None:
    layout = standard_layout(layout_name)
    truth = dipole_fields(layout_name)
    missing = layout.ch_names[3::every]
    match = match_channels(truth.pick([name for name in layout.ch_names if name not in missing]), layout)
    assert match.interpolated == missing
    for kind in sorted(set(layout.ch_types)):
        rows = [i for i in range(layout.n_channels) if layout.ch_names[i] in missing and layout.ch_types[i] == kind]
        if rows:
            error = np.linalg.norm(match.epochs.data[0, rows] - truth.data[0, rows])
            assert error < 0.15 * np.linalg.norm(truth.data[0, rows])


def test_noise_is_not_amplified() -> None:
    layout = standard_layout("ctf275")
    noise = np.random.default_rng(0).standard_normal((1, 274, 500)) * 1e-14
    epochs = SignalEpochs(noise, 100.0, 0.0, layout.ch_names, layout.ch_types, layout.positions)
    missing = layout.ch_names[3::5]
    match = match_channels(epochs.pick([name for name in layout.ch_names if name not in missing]), layout)
    assert match.epochs.pick(missing).data.std() < 1.5e-14


@pytest.mark.slow
def test_meg_agrees_with_mnes_field_interpolation() -> None:
    layout = standard_layout("neuromag306")
    truth = dipole_fields("neuromag306")
    missing = layout.ch_names[3::30]
    match = match_channels(truth.pick([name for name in layout.ch_names if name not in missing]), layout)
    info = layout_info(layout, 100.0)
    info["bads"] = list(missing)
    oracle = mne.EvokedArray(truth.data[0].astype(np.float64), info, verbose="error")
    oracle.interpolate_bads(origin=HEAD_CENTRE, reset_bads=False, verbose="error")
    for kind in ("mag", "grad"):
        rows = [i for i in range(306) if layout.ch_names[i] in missing and layout.ch_types[i] == kind]
        if rows:
            assert np.corrcoef(match.epochs.data[0, rows].ravel(), oracle.data[rows].ravel())[0, 1] > 0.98
