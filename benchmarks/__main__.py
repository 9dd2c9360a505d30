"""Measure nearest-neighbour search and training (python -m benchmarks [--device cuda|cpu] [--out FOLDER])."""

import argparse

import torch
from rich.console import Console

from benchmarks import measure
from benchmarks.nearest import comparison as nearest
from benchmarks.training import comparison as training


def main() -> None:
    """Measure the chosen parts on the chosen device, print tables and write a JSON file."""
    description = "Measure imletriton and its alternatives."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    measure.add_arguments(parser)
    shape_help = "numbers of queries, samples and dimensions to search; can be given several times"
    parser.add_argument("--shape", action="append", metavar="N,M,D", help=shape_help)
    parser.add_argument(
        "--only", choices=["nearest", "training"], help="the part to measure; by default all parts are measured"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    shapes = [nearest.shape_of(text) for text in options.shape or ()]
    shapes = shapes or nearest.SHAPES + (nearest.LARGE if device.type == "cuda" else [])
    console = Console(width=None if Console().is_terminal else 150)
    about = measure.machine(device)
    console.print(f"{about['device']}, {about['date']}, {about['commit']}")
    result = dict(about)
    if options.only in (None, "nearest"):
        result["nearest"] = nearest.run(device, shapes, console)
    if options.only in (None, "training"):
        result["training"] = training.run(device, console)
    path = measure.write(result, f"{f'{options.only}-' if options.only else ''}{about['date']}", options.out)
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
