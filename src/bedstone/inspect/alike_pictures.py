"""How alike two pictures are: PSNR and SSIM.

Shapes: B pictures, C channels, H x W values from -1 to 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Decibels of each pair of pictures, (B,): 10 log10 of the range squared over the mean squared
    error; what leaves the range is cut first."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).float().square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-10))


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of each pair, (B,), 1 where they are equal (Wang et al., 2004).

    A Gaussian window of 11 by 11 pixels (of small pictures as much as fits) with a deviation of
    1.5, at every place where it lies inside; the mean over places and channels.
    """
    x, y = ((each.clamp(-1, 1).float() + 1) / 2 for each in (one, other))
    side = min(WINDOW, *x.shape[2:])
    side -= 1 - side % 2
    places = torch.arange(side, device=x.device) - side // 2
    line = torch.exp(-places.square() / (2 * SIGMA**2)).float()
    line = line / line.sum()

    def smooth(z: Tensor) -> Tensor:
        channels = z.shape[1]
        z = F.conv2d(z, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(z, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    both = smooth(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    form = (2 * both + K2**2) / (var_x + var_y + K2**2)
    return (light * form).flatten(1).mean(1)
