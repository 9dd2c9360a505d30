# %% [markdown]
# # Your own selection strategy
# IMLE pulls, for each picture, the nearest generated sample towards it. A strategy decides which pictures get a new
# sample, and when. This one gives new samples to the pictures that are farthest from theirs, and leaves the others
# alone; it is compared with vanilla IMLE on twelve points in the plane.

# %%
import torch
from pydantic import Field
from torch import Tensor

import imletriton
from imletriton.selection import Parameters, Strategy


# %%
class WorstFirst(Strategy):
    """In each epoch, the share of the data points that are farthest from their samples get new ones."""

    name = "worst-first"

    class Parameters(Parameters):  # the keys that the strategy adds to a recipe's [selection]
        worst: float = Field(0.25, gt=0, le=1)  # share of the data points

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        """Which data points get a new sample in this epoch, bool [n], given their distances, float32 [n]."""
        count = max(1, round(self.settings.worst * self.n))
        due = torch.zeros(self.n, dtype=torch.bool, device=distance.device)
        due[distance.topk(count).indices] = True
        return due


# %% [markdown]
# Defining the class makes its name known to recipes. Its log has what every strategy's has, such as `random`: the mean
# distance from a random sample to its nearest data point, which shows what users of the model get.

# %%
for strategy in ("vanilla", "worst-first"):
    changes = {"name": strategy, "selection.strategy": strategy, "train.iterations": 300, "log.every": 100}
    run = imletriton.fit(imletriton.Recipe.load("toy2d", changes), reporter=imletriton.Reporter())
    last = run.log()[-1]
    print(f"{strategy:12} distance of selected samples {last.nearest:.3f}, of random ones {last.random:.3f}")
    imletriton.picture(run, "samples").save(f"{strategy}.png")
