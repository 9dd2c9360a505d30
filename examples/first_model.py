# %% [markdown]
# # A first model
# From a folder of pictures to new ones, in a few lines. Run this as a script, or cell by cell in an editor that knows
# `# %%`. It writes everything into the folder that it runs in.

# %%
from pathlib import Path

from PIL import Image

import imletriton
from imletriton.data.faces import faces

# %% [markdown]
# A folder of pictures. Put yours here; if there is none, this draws 24 faces, so that it runs anywhere.

# %%
pictures = Path("pictures")
if not pictures.is_dir():
    pictures.mkdir()
    for k, face in enumerate(faces(32)[:24]):
        Image.fromarray(face).save(pictures / f"{k:02d}.png")

# %% [markdown]
# Training. The recipe is the one of the demo with a few keys changed; 100 steps are enough to see that it learns, and
# a good model takes thousands. `imletriton recipes` lists all recipes.

# %%
changes = {"data.source": str(pictures), "name": "first", "train.iterations": 100, "generator.width": 16}
run = imletriton.fit(imletriton.Recipe.load("faces", changes))

# %% [markdown]
# Samples, as a tensor and as a picture to look at; then what each training picture's nearest sample looks like.

# %%
model = imletriton.Generator.from_pretrained(run)
samples = model.sample(8, seed=0)  # uint8 [8, 3, 32, 32]; sample k depends on (seed, k) alone
print(samples.shape, samples.dtype)
imletriton.picture(run).save("samples.png")

# %%
imletriton.picture(run, "nearest").save("nearest.png")

# %% [markdown]
# How good are they? By default, `evaluate` makes 5,000 samples and downloads the weights of the metrics' networks.
# Random weights need no download, but their figures can only be compared with each other.

# %%
result = imletriton.evaluate(run, metrics=["fid", "kid"], n=12, pretrained=False)
for name, metric in result.metrics.items():
    print(f"{name}: {metric.value:.4g}")
