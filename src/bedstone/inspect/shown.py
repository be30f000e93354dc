"""Signals of any kind as pictures to look at.

Shapes: B signals, C channels, F frames of a sound or a video, D slices of a volume, H and W.
"""

import torch
from torch import Tensor

MOST = 8  # frames or slices of a strip


def as_pictures(signals: Tensor, kind: str) -> Tensor:
    """(B, C, *S) to pictures (B, 1 or 3, H, W), of about -1 to 1.

    A sound is its spectrogram, low tones at the bottom; a video is its frames side by side; a
    volume its slices.

    Args:
        kind: image, audio, video or volume.
    """
    if kind == "audio":
        return signals.flip(1)[:, None]  # (B, 1, bins, frames)
    if kind == "image":
        return signals
    count = signals.shape[2]
    chosen = torch.linspace(0, count - 1, min(count, MOST)).round().long()
    return torch.cat([signals[:, :, place] for place in chosen.tolist()], -1)
