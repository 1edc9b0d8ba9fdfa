"""Blurred pictures: what an eye sees beside the point it looks at, and the lower-level targets that brains follow best.

Edges are continued by their last pixel, so that a kernel may be wider than the picture.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Images = NDArray[np.uint8]

BLUR_KERNELS = (1, 3, 9, 15, 21, 27, 33, 39, 45, 51, 57, 63)
"""Twelve kernel widths in pixels, from sharp to nearly shapeless."""


def kernel_sigma(size: int) -> float:
    """Give the standard deviation in pixels that belongs to a kernel width, by OpenCV's rule.

    Raises
    ------
    ValueError
        If the width is not an odd number of at least 1.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel width {size} must be odd and at least 1; 1 leaves the picture sharp")
    return 0.3 * ((size - 1) / 2 - 1) + 0.8


def gaussian_blur(images: Images, size: int) -> Images:
    """Blur pictures with a Gaussian kernel.

    Parameters
    ----------
    images : ndarray, (n, h, w, 3), uint8
    size : int
        Width of the kernel in pixels, odd; 1 returns the pictures as they are.

    Returns
    -------
    ndarray, (n, h, w, 3), uint8
        Rounded to whole levels.
    """
    sigma = kernel_sigma(size)
    if size == 1:
        return images
    return _to_images(_blurred(_to_pixels(images), size, sigma))


def foveal_blur(images: Images, size: int, fovea: float = 0.25) -> Images:
    """Blur pictures the more the farther from their centre.

    Parameters
    ----------
    images : ndarray, (n, h, w, 3), uint8
    size : int
        Width of the kernel in pixels far from the centre.
    fovea : float
        Distance from the centre, as a share of the half diagonal, at which the sharp picture has weight
        ``exp(-1/2)``; its weight falls as a Gaussian.

    Returns
    -------
    ndarray, (n, h, w, 3), uint8
    """
    if fovea <= 0:
        raise ValueError(f"fovea {fovea} must be positive; use gaussian_blur for a picture blurred everywhere")
    sigma = kernel_sigma(size)
    if size == 1:
        return images
    pixels = _to_pixels(images)
    height, width = pixels.shape[2:]
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    half_diagonal = max(float(rows[-1].square() + columns[-1].square()) ** 0.5, 1.0)
    distance = (rows[:, None].square() + columns[None, :].square()).sqrt() / half_diagonal
    sharp = torch.exp(-0.5 * (distance / fovea).square())
    return _to_images(sharp * pixels + (1 - sharp) * _blurred(pixels, size, sigma))


def _blurred(pixels: Tensor, size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (places / sigma).square())
    kernel = (kernel / kernel.sum()).float()
    radius = size // 2
    n, c, height, width = pixels.shape
    flat = pixels.reshape(n * c, 1, height, width)
    flat = functional.conv2d(functional.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel[None, None, None])
    flat = functional.pad(flat, (0, 0, radius, radius), mode="replicate")
    return functional.conv2d(flat, kernel[None, None, :, None]).reshape(n, c, height, width)


def _to_pixels(images: Images) -> Tensor:
    # (n, h, w, c) -> (n, c, h, w)
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()


def _to_images(pixels: Tensor) -> Images:
    # (n, c, h, w) -> (n, h, w, c)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).numpy())
