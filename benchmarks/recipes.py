"""Count what each of the papers' recipes costs, for the table of recipes/README.md (python -m benchmarks.recipes)."""

import argparse
import functools
import textwrap
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.training.plain import PlainGenerator
from imletriton.data.catalogue import KNOWN, published
from imletriton.distance import LPIPS
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.sections import GeneratorConfig

METHODS = {"rejection": "RS-IMLE", "adaptive": "Adaptive IMLE"}
PEAK = 790e12  # FLOP/s of a large bfloat16 matmul, measured on an H100
# The least and the greatest share of PEAK that pools and training steps are predicted to reach.
POOL_SHARES, TRAINING_SHARES = (0.40, 0.45), (0.25, 0.30)
HEAD = ["recipe", "images", "method", "pools", "samples in each", "pool samples in all", "training images in all"]
HEAD += ["PFLOP in all", "published FID", "predicted hours"]


def papers_recipes() -> dict[str, Recipe]:
    """Load the papers' recipes by file name without suffix: for each data set RS-IMLE, then Adaptive IMLE if any."""
    names = [f"{folder}{name}" for name in KNOWN for folder in ("", "adaptive/")]
    files = {name: measure.ROOT / "recipes" / f"{name}.toml" for name in names}
    return {name: Recipe.load(file) for name, file in files.items() if file.exists()}


def pools(recipe: Recipe, n: int) -> tuple[int, int]:
    """Compute how many pools a run draws.

    Under the adaptive strategy, a new pool is drawn when a data point needs a sample from a pool that it has used
    already. This is after forced_refresh epochs at the latest and after staleness epochs at the earliest.

    Args:
        recipe: The recipe of the run.
        n: The number of images.

    Returns:
        The least and the greatest number of pools.
    """
    epochs = -(-recipe.train.iterations // -(-n // recipe.train.batch_size))
    parameters = recipe.selection.parameters
    if "refresh" in parameters:
        longest = shortest = parameters["refresh"]
    else:
        longest, shortest = parameters["forced_refresh"], parameters["staleness"]
    return -(-epochs // longest), -(-epochs // shortest)


@functools.cache
def flops(generator: GeneratorConfig, backbone: str, search: str) -> tuple[int, int]:
    """Count the floating-point operations of the generator and of LPIPS as the papers describe them.

    They are counted without computing anything. A pool sample takes one forward pass of the generator, and one of LPIPS
    only where LPIPS features are searched. A training image takes a forward and a backward pass; the features of its
    target are not counted, because they are computed only once.

    Args:
        generator: The section `generator` of a recipe.
        backbone: The network of LPIPS.
        search: "features" or "pixels", whichever nearest neighbours are searched by.

    Returns:
        The operations for a pool sample and for a training image.
    """
    with FakeTensorMode():
        network, distance = Generator(**generator.model_dump()), LPIPS(backbone, 0.1, False, 0)
        counts = [FlopCounterMode(display=False) for _ in range(3)]
        with counts[0]:
            sample = PlainGenerator(network)(torch.zeros(1, generator.latent_dim))
        with counts[1]:
            parts = distance.embed(sample)
        with counts[2]:
            torch.stack([part.square().sum() for part in parts]).sum().backward()
    generating, embedding, backward = (count.get_total_flops() for count in counts)
    return generating + (embedding if search == "features" else 0), generating + embedding + backward


def row(name: str, recipe: Recipe) -> list[str]:
    """Compute the cells of a recipe, in the order of HEAD."""
    dataset, method = KNOWN[Path(name).name], METHODS[recipe.selection.strategy]
    about, m = "~" if dataset.about else "", recipe.selection.pool_size(dataset.images)
    pool_counts = pools(recipe, dataset.images)
    images = recipe.train.iterations * recipe.train.batch_size
    of_sample, of_image = flops(recipe.generator, recipe.distance.backbone, recipe.distance.search)
    pool_flops, training_flops = [m * count * of_sample for count in pool_counts], images * of_image
    slow, fast = (
        (operations / (PEAK * pool_share) + training_flops / (PEAK * share)) / 3600
        for operations, pool_share, share in zip(reversed(pool_flops), POOL_SHARES, TRAINING_SHARES, strict=True)
    )
    return [
        f"`{name}`",
        f"{about}{dataset.images}",
        method,
        f"{about}{span(*(f'{count:,}' for count in pool_counts))}",
        f"{about}{m:,}",
        f"{about}{span(*(f'{m * count:,}' for count in pool_counts))}",
        f"{images:,}",
        f"{about}{span(*(f'{(operations + training_flops) / 1e15:,.0f}' for operations in pool_flops))}",
        f"{published(recipe.data.source)[method]['fid']:.1f}",
        span(f"{fast:.2f}", f"{slow:.2f}"),
    ]


def span(least: str, most: str) -> str:
    """Format a range of numbers, or one number where both are the same."""
    return least if least == most else f"{least} to {most}"


def page() -> str:
    """Return the table in Markdown and the note below it, which explains the columns."""
    recipes = papers_recipes()
    rows = [HEAD, ["---"] * len(HEAD), *(row(name, recipe) for name, recipe in recipes.items())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    counts = {
        (r.distance.search, *flops(r.generator, r.distance.backbone, r.distance.search)) for r in recipes.values()
    }
    of_sample = {search: f"{sample / 1e9:.0f} GFLOP" for search, sample, _ in counts}
    (of_image,) = {image / 1e9 for _, _, image in counts}
    shares = [f"{100 * least:.0f} to {100 * most:.0f} %" for least, most in (POOL_SHARES, TRAINING_SHARES)]
    note = f"""
        *~ means that the number of images is approximate, and so are the numbers that follow from it. Adaptive IMLE
        draws the fewest pools if every refresh is a forced one, and the most if every refresh comes as soon as the
        staleness allows. PFLOP are 10<sup>15</sup> floating-point operations of the generator and of VGG16:
        {of_sample["pixels"]} for a pool sample that is searched by its pixels (RS-IMLE), {of_sample["features"]} for a
        pool sample that is searched by its LPIPS features (Adaptive IMLE), and {of_image:.0f} GFLOP for a training
        image (forward and backward pass). They are counted in the network as the papers describe it. The published FID
        is of 5,000 samples, as the RS-IMLE paper reports it. The hours are for one H100; they are predicted, not
        measured: they assume that these operations run at {shares[0]} (pools) and {shares[1]} (training) of the
        {PEAK / 1e12:.0f} TFLOP/s that a large bfloat16 matmul was measured to reach on that GPU. Search, compiling,
        checkpoints and sample grids are left out.*"""
    return f"{table}\n\n{textwrap.fill(' '.join(note.split()), 120, break_on_hyphens=False)}\n"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__).parse_args()
    print(page(), end="")


if __name__ == "__main__":
    main()
