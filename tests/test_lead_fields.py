"""Lead fields: physics that must hold, and plausible sizes."""

import numpy as np
import pytest

from encoders.lead_fields import brain_grid, fit_sphere, head_sphere, lead_field
from encoders.sensors import standard_layout

LAYOUTS = ("things_eeg2_63", "ctf275", "neuromag306")
MOMENT = 10e-9


def dipoles(n: int = 40) -> np.ndarray:
    directions = np.random.default_rng(0).standard_normal((n, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    return 0.75 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def peak(name: str, kind: str) -> float:
    layout = standard_layout(name)
    rows = np.asarray(layout.ch_types) == kind
    return float(MOMENT * np.abs(lead_field(layout, dipoles())[rows]).max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_shape_and_finite(name: str) -> None:
    layout = standard_layout(name)
    field = lead_field(layout, dipoles(5))
    assert field.shape == (layout.n_channels, 5, 3)
    assert np.isfinite(field).all()


@pytest.mark.parametrize(
    ("name", "kind", "low", "high"),
    [
        ("things_eeg2_63", "eeg", 0.5e-6, 10e-6),
        ("ctf275", "mag", 30e-15, 400e-15),
        ("neuromag306", "mag", 30e-15, 400e-15),
        ("neuromag306", "grad", 1e-12, 20e-12),
    ],
)
def test_ten_nanoampere_metres_give_plausible_amplitudes(name: str, kind: str, low: float, high: float) -> None:
    assert low < peak(name, kind) < high


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_electrodes_see_radial_dipoles(name: str) -> None:
    layout = standard_layout(name)
    positions = dipoles()
    field = lead_field(layout, positions)
    radial = np.einsum("cka,ka->ck", field, positions / np.linalg.norm(positions, axis=1, keepdims=True))
    visible = np.abs(radial).max() / np.abs(field).max()
    assert visible > 0.5 if "eeg" in layout.ch_types else visible < 1e-9


@pytest.mark.parametrize("name", LAYOUTS)
def test_mirrored_layout_is_roughly_symmetric(name: str) -> None:
    layout = standard_layout(name)
    left = lead_field(layout, np.array([[-0.6, -0.3, 0.3]]))[:, 0, 2]
    x = layout.positions[:, 0] - head_sphere(layout)[0][0]
    power = left**2
    assert power[x < 0].sum() > 2.0 * power[x > 0].sum()


def test_occipital_dipole_is_seen_at_the_back() -> None:
    layout = standard_layout("things_eeg2_63")
    field = lead_field(layout, np.array([[0.0, -0.8, 0.1]]))[:, 0]
    best = layout.ch_names[int(np.abs(field[:, 1]).argmax())]
    assert best in {"O1", "Oz", "O2", "POz", "PO3", "PO4"}


def test_dipole_outside_the_brain_is_refused() -> None:
    with pytest.raises(ValueError, match="within 0.85 head radii"):
        lead_field(standard_layout("things_eeg2_63"), np.array([[0.0, 0.0, 0.95]]))


def test_sphere_is_recovered_from_points_on_it() -> None:
    points = np.array([0.01, -0.02, 0.03]) + 0.09 * dipoles(30) / 0.75
    centre, radius = fit_sphere(points)
    np.testing.assert_allclose(centre, [0.01, -0.02, 0.03], atol=1e-9)
    assert radius == pytest.approx(0.09)


def test_grid_fills_the_brain_evenly() -> None:
    grid = brain_grid()
    assert 300 < len(grid) < 600
    assert np.linalg.norm(grid, axis=1).max() < 0.85
    assert abs(grid[:, 0].mean()) < 1e-9
