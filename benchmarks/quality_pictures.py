"""The sheets of samples that benchmarks.quality draws, and the page that shows them in pairs without names."""

import json
import random
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.quality_methods import BASE, BEST, METHODS
from imletriton.plotting.grids import image_grid, titled


def sheets(
    folder: Path, resolution: int, budget: str, seed: int = 0, count: int = 64, columns: int = 8
) -> dict[str, Image.Image]:
    """A sheet of samples of each method, from the same latents."""
    budgets = {method: "images" if method == BASE else budget for method in METHODS}
    files = {method: folder / f"{method}-{resolution}-{seed}-{budget}.npy" for method, budget in budgets.items()}
    of = {method: np.load(file)[:count] for method, file in files.items() if file.exists()}
    return {method: image_grid(torch.from_numpy(samples), columns) for method, samples in of.items()}


def side_by_side(pictures: dict[str, Image.Image]) -> Image.Image:
    """All sheets with their titles in one picture."""
    parts = [titled(picture, name) for name, picture in pictures.items()]
    whole = Image.new("RGB", (sum(p.width + 8 for p in parts), max(p.height for p in parts)), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + 8
    return whole


def pairs(folder: Path, resolution: int, budget: str, seeds: int) -> Image.Image:
    """24 samples of the first method (left) and of the best one (right), from the same latents; a row for each seed."""
    found = [sheets(folder, resolution, budget, seed, 24, 12) for seed in range(seeds)]
    best = BEST[resolution]
    shown = [[of[BASE], of[best]] for of in found if {BASE, best} <= of.keys()]
    width, height = shown[0][0].size
    whole = Image.new("RGB", (2 * width + 8, len(shown) * (height + 8)), "white")
    for row, pair in enumerate(shown):
        for column, picture in enumerate(pair):
            whole.paste(picture, (column * (width + 8), row * (height + 8)))
    return whole


BLIND = """<!doctype html><meta charset="utf-8"><title>Which is better?</title>
<style>body {font: 16px sans-serif; text-align: center} img {image-rendering: pixelated; width: 45vw; cursor: pointer;
margin: 1vw}</style><h1>Which sheet is better?</h1><p id="count"></p><div id="pair"></div><pre id="result"></pre>
<script>
const sheets = SHEETS, pairs = PAIRS, wins = {};
let k = 0;
function next() {
  document.getElementById("count").textContent = k < pairs.length ? `${k + 1} of ${pairs.length}` : "Done.";
  const pair = document.getElementById("pair");
  pair.replaceChildren();
  if (k == pairs.length) {
    document.getElementById("result").textContent = Object.entries(wins).sort((a, b) => b[1] - a[1])
      .map(([name, count]) => `${count}  ${name}`).join("\\n");
    return;
  }
  for (const name of pairs[k]) {
    const image = document.createElement("img");
    image.src = "data:image/png;base64," + sheets[name];
    image.onclick = () => { wins[name] = (wins[name] || 0) + 1; k += 1; next(); };
    pair.append(image);
  }
}
next();
</script>
"""


def blind_page(pictures: dict[str, Image.Image]) -> str:
    """A page that shows pairs of sheets without names, in random order, and counts which one is chosen."""
    coded = {}
    for name, picture in pictures.items():
        file = BytesIO()
        picture.save(file, "PNG")
        coded[name] = b64encode(file.getvalue()).decode()
    names, rng = list(pictures), random.Random(0)
    pairs = [rng.sample([a, b], 2) for k, a in enumerate(names) for b in names[:k]]
    rng.shuffle(pairs)
    return BLIND.replace("SHEETS", json.dumps(coded)).replace("PAIRS", json.dumps(pairs))
