"""Signals of any kind as pictures to look at.

Shapes: B signals, C channels, F frames of a sound or a video, D slices of a volume, H and W.
"""

import math

import torch
from torch import Tensor

MOST = 8  # frames or slices of a signal
ROW = 4  # of these, in one row


def as_pictures(signals: Tensor, kind: str) -> Tensor:
    """(B, C, *S) to pictures (B, 1 or 3, H, W), of about -1 to 1.

    A sound is its spectrogram, low tones at the bottom; a video is its frames, in two rows where
    there are more than four; a volume its slices.

    Args:
        kind: image, audio, video or volume.
    """
    if kind == "audio":
        return signals.flip(1)[:, None]  # (B, 1, bins, frames)
    if kind == "image":
        return signals
    count = signals.shape[2]
    chosen = torch.linspace(0, count - 1, min(count, MOST)).round().long()
    frames = list(signals[:, :, chosen].unbind(2))
    columns = len(frames) if len(frames) <= ROW else math.ceil(len(frames) / 2)
    frames += [torch.ones_like(frames[0])] * (-len(frames) % columns)
    rows = [torch.cat(frames[at : at + columns], -1) for at in range(0, len(frames), columns)]
    return torch.cat(rows, -2)
