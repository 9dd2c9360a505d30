"""What samples are compared with: the search features of the data points, and their targets in the loss."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from imletriton.distance import Distance, Embedding
from imletriton.training.memory import BATCH, TARGET_BYTES


class Targets(NamedTuple):
    """The n data points as the search and the loss see them."""

    features: Tensor  # float32 [n, d], for the search
    kept: Embedding | None  # what the loss compares samples with; None where that takes too much memory


@torch.no_grad()
def embed(distance: Distance, points: Tensor, autocast: AbstractContextManager[None]) -> Targets:
    """Embed the data points.

    Args:
        distance: d.
        points: uint8 or float [n, ...].
        autocast: The context in which networks run.
    """
    n, features = len(points), []
    kept: Embedding | None = None
    room = torch.cuda.mem_get_info(points.device)[0] // 4 if points.device.type == "cuda" else TARGET_BYTES
    with autocast:
        for start in range(0, n, BATCH):
            batch = points[start : start + BATCH]
            embedding = distance.embed(batch)
            features.append(distance.features(batch, embedding))
            if start and kept is None:  # they do not fit
                continue
            parts = distance.target(batch, embedding)
            if start == 0 and n * sum(part[0].nbytes for part in parts) <= room:
                kept = tuple(part.new_empty(n, part.shape[1]) for part in parts)
            for target, part in zip(kept or (), parts, strict=kept is not None):
                target[start : start + len(batch)] = part
    return Targets(torch.cat(features), kept)
