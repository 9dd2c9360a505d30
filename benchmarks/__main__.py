"""python -m benchmarks [--device cuda|cpu] [--out FOLDER]"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import measure, nearest, training

PARTS = ("nearest", "training")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure imletriton beside its peers.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", action="append", metavar="N,M,D", help="queries, samples, dimensions; repeatable")
    parser.add_argument("--only", choices=PARTS, help="one part; by default all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the JSON file goes")
    options = parser.parse_args()
    device = torch.device(options.device)
    shapes = nearest.SHAPES + (nearest.LARGE if device.type == "cuda" else [])
    if options.shape:
        shapes = [tuple(int(v) for v in s.split(",")) for s in options.shape]
    console = Console(width=None if Console().is_terminal else 150)
    about = measure.machine(device)
    console.print(f"{about['device']}, {about['date']}, {about['commit']}")
    parts = {"nearest": lambda: nearest.run(device, shapes, console), "training": lambda: training.run(device, console)}
    result = about | {name: parts[name]() for name in PARTS if options.only in (None, name)}
    path = measure.write(result, f"{f'{options.only}-' if options.only else ''}{about['date']}", options.out)
    console.print(f"Written to {path}")


if __name__ == "__main__":
    main()
