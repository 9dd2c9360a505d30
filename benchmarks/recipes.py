"""python -m benchmarks.recipes: what each of the papers' recipes costs, counted; the table of recipes/README.md."""

import argparse
import functools
import textwrap
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain import PlainGenerator
from imletriton.data.catalogue import KNOWN, published
from imletriton.distance import LPIPS
from imletriton.generator import Generator
from imletriton.recipe import GeneratorConfig, Recipe

ROOT = Path(__file__).parents[1]
METHODS = {"rejection": "RS-IMLE", "adaptive": "Adaptive IMLE"}
PEAK = 790e12  # FLOP/s of a large bfloat16 product, measured on an H100
# Shares of it that pools and training steps are predicted to reach there, least and most.
POOL_SHARES, TRAINING_SHARES = (0.40, 0.45), (0.25, 0.30)
HEAD = ("recipe", "images", "method", "pools", "samples in each", "pool samples in all", "training images in all")
HEAD += ("PFLOP in all", "published FID", "predicted hours")


def papers_recipes() -> dict[str, Recipe]:
    """The papers' recipes by file, without its suffix: of each set RS-IMLE, then Adaptive IMLE where there is one."""
    names = [f"{folder}{name}" for name in KNOWN for folder in ("", "adaptive/")]
    files = {name: ROOT / "recipes" / f"{name}.toml" for name in names}
    return {name: Recipe.load(file) for name, file in files.items() if file.exists()}


def pools(recipe: Recipe, n: int) -> tuple[int, int]:
    """Fewest and most pools that are drawn for n images.

    Under adaptive, the pool that a point found its sample in is drawn anew when that point is due again: after
    forced_refresh epochs at the latest, after staleness epochs at the soonest.
    """
    epochs = -(-recipe.train.iterations // -(-n // recipe.train.batch_size))
    p = recipe.selection.parameters
    longest, shortest = (p["refresh"],) * 2 if "refresh" in p else (p["forced_refresh"], p["staleness"])
    return -(-epochs // longest), -(-epochs // shortest)


@functools.cache
def flops(generator: GeneratorConfig, backbone: str, search: str) -> tuple[int, int]:
    """Of a pool sample, and of a training image: generator and LPIPS as the papers write them, nothing else.

    Counted without computing. Of a pool sample that is searched by its pixels, LPIPS is not asked for. A training image
    is a forward and a backward pass; its target's features are kept.
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
    made, embedded, backward = (count.get_total_flops() for count in counts)
    return made + (embedded if search == "features" else 0), made + embedded + backward


def row(name: str, recipe: Recipe) -> list[str]:
    """The cells of a recipe, in the order of HEAD."""
    known, method = KNOWN[Path(name).name], METHODS[recipe.selection.strategy]
    about, m = "~" if known.about else "", recipe.selection.pool_size(known.images)
    drawn = pools(recipe, known.images)
    images = recipe.train.iterations * recipe.train.batch_size
    of_sample, of_image = flops(recipe.generator, recipe.distance.backbone, recipe.distance.search)
    made, trained = [m * count * of_sample for count in drawn], images * of_image
    slow, fast = (
        (work / (PEAK * pool_share) + trained / (PEAK * share)) / 3600
        for work, pool_share, share in zip(reversed(made), POOL_SHARES, TRAINING_SHARES, strict=True)
    )
    return [
        f"`{name}`",
        f"{about}{known.images}",
        method,
        f"{about}{span(*(f'{count:,}' for count in drawn))}",
        f"{about}{m:,}",
        f"{about}{span(*(f'{m * count:,}' for count in drawn))}",
        f"{images:,}",
        f"{about}{span(*(f'{(work + trained) / 1e15:,.0f}' for work in made))}",
        f"{published(recipe.data.source)[method]['fid']:.1f}",
        span(f"{fast:.2f}", f"{slow:.2f}"),
    ]


def span(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def page() -> str:
    """The table in Markdown, and what its columns are."""
    recipes = papers_recipes()
    rows = [HEAD, ["---"] * len(HEAD), *(row(name, recipe) for name, recipe in recipes.items())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    counts = {
        (r.distance.search, *flops(r.generator, r.distance.backbone, r.distance.search)) for r in recipes.values()
    }
    of_sample = {search: f"{made / 1e9:.0f} GFLOP" for search, made, _ in counts}
    (of_image,) = {image / 1e9 for _, _, image in counts}
    shares = [f"{100 * least:.0f} to {100 * most:.0f} %" for least, most in (POOL_SHARES, TRAINING_SHARES)]
    told = f"""
        *~: the number of images is approximate, and so is what follows from it. Adaptive IMLE draws the fewest pools
        where every refresh is a forced one, the most where each comes as soon as its staleness allows. PFLOP:
        10<sup>15</sup> floating-point operations of generator and VGG16, {of_sample["pixels"]} a pool sample that is
        searched by its pixels (RS-IMLE), {of_sample["features"]} one that is searched by its LPIPS features (Adaptive
        IMLE), and {of_image:.0f} GFLOP a training image (forward and backward), counted in the network as the papers
        write it.
        Published FID: of 5,000 samples, as the RS-IMLE paper reports it. Hours on one H100 are predicted, not measured:
        these operations at {shares[0]} (pools) and {shares[1]} (training) of the {PEAK / 1e12:.0f} TFLOP/s that a large
        bfloat16 product was measured to reach there. Search, compiling, checkpoints and sample grids are left out.*"""
    return f"{table}\n\n{textwrap.fill(' '.join(told.split()), 120, break_on_hyphens=False)}\n"


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__).parse_args()
    print(page(), end="")


if __name__ == "__main__":
    main()
