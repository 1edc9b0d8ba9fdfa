import numpy as np
import pytest
from scipy import ndimage

from alignment.blurred_pictures import BLUR_KERNELS, foveal_blur, gaussian_blur, kernel_sigma


def pictures(n: int = 2, height: int = 48, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", BLUR_KERNELS)
def test_blur_is_scipys(size: int) -> None:
    images = pictures()
    blurred = gaussian_blur(images, size)
    if size == 1:
        assert np.array_equal(blurred, images)
        return
    expected = ndimage.gaussian_filter(
        images.astype(np.float64), kernel_sigma(size), mode="nearest", radius=size // 2, axes=(1, 2)
    )
    assert blurred.shape == images.shape and blurred.dtype == np.uint8
    assert np.abs(blurred - expected).max() <= 0.5 + 1e-3  # float32 sums rounded to whole levels


def test_wider_kernels_leave_less_and_flat_pictures_stay() -> None:
    images = pictures(1)
    spread = [gaussian_blur(images, size).astype(float).std() for size in BLUR_KERNELS]
    assert all(a > b for a, b in zip(spread, spread[1:], strict=False))
    flat = np.full((1, 20, 30, 3), 137, np.uint8)
    assert np.array_equal(gaussian_blur(flat, 63), flat) and np.array_equal(foveal_blur(flat, 63), flat)


def test_foveal_blur_keeps_the_centre() -> None:
    images = pictures(1, 49, 49)
    foveal, everywhere = foveal_blur(images, 51, 0.3), gaussian_blur(images, 51)
    assert np.abs(foveal[0, 24, 24].astype(int) - images[0, 24, 24]).max() <= 1
    corner = np.s_[0, :3, :3]
    assert np.abs(foveal[corner].astype(int) - everywhere[corner]).max() <= 2
    assert np.array_equal(foveal_blur(images, 51, 1e-4)[corner], everywhere[corner])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="odd and at least 1"):
        gaussian_blur(pictures(), 4)
    with pytest.raises(ValueError, match="must be positive"):
        foveal_blur(pictures(), 5, 0)
