"""python -m benchmarks.gpu: what a half hour on a CUDA card should settle, in four stages of under ten minutes each.

`make gpu STAGE=1` ... `4` run one stage each, and `make gpu` all of them. Each stage writes a JSON file, anew after
every item, and ends with a table. `make gpu DEVICE=cpu` rehearses all items with tiny shapes and without a GPU.
"""

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".gpu"  # compiled kernels, shared by the stages; git ignores it
NEEDED = [
    "torch",
    "triton",
    "numpy",
    "einops",
    "safetensors",
    "pydantic",
    "tomli_w",
    "typer",
    "rich",
    "huggingface_hub",
]
WANTED = ["torchvision", "lpips", "pytest", "hypothesis", "matplotlib", "tensorboard", "scipy"]  # for some items


def missing(modules: list[str]) -> list[str]:
    """Return the modules that are not installed."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def remedy(modules: list[str]) -> str:
    """Say in one sentence what is not installed and what to do."""
    names = " and ".join([", ".join(modules[:-1]), modules[-1]] if modules[1:] else modules)
    return (
        f"{names} {'are' if modules[1:] else 'is'} not installed: call `make gpu-wheels` where there is a network, "
        "bring the folder wheels/ here, and call `make gpu` again."
    )


def main() -> int:
    """Run stages, or print what earlier ones wrote; return the exit code: 1 if an item failed, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--stage", type=int, action="append", choices=range(1, 5), help="by default all four, in order")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse with --tiny")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: to see that everything runs")
    parser.add_argument("--tests", nargs="+", default=[], help="tests to run in stage 1, instead of all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="the folder for the JSON files")
    parser.add_argument(
        "--summary", type=Path, metavar="FOLDER", help="only print what the JSON files of a folder hold"
    )
    arguments = parser.parse_args()
    if absent := missing(NEEDED):
        print(remedy(absent), file=sys.stderr)
        return 2
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor"))
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

    from benchmarks.gpu import summary

    if arguments.summary:
        return summary.show(sorted(arguments.summary.glob("*-gpu-*.json")))
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Run the stages that the command line asks for."""
    import torch

    from benchmarks import measure
    from benchmarks.gpu import summary
    from benchmarks.gpu.items import Options, Stage
    from benchmarks.gpu.runner import run_stage

    stages = [
        Stage(1, "correctness", 360, "benchmarks.gpu.correctness"),
        Stage(2, "search", 450, "benchmarks.gpu.search"),
        Stage(3, "training", 570, "benchmarks.gpu.training"),
        Stage(4, "end to end", 330, "benchmarks.gpu.fit"),
    ]
    if arguments.device != "cpu" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA GPU here: `make gpu DEVICE=cpu` rehearses without one.", file=sys.stderr)
        return 2
    if arguments.device == "cpu" and not arguments.tiny:
        print("`--device cpu` needs `--tiny`: on a CPU the kernels are interpreted.", file=sys.stderr)
        return 2
    absent = missing(WANTED)
    if absent:
        print(f"Items that need them will be skipped: {remedy(absent)}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = Options(arguments.device, arguments.tiny, arguments.tests, arguments.out.resolve())
    about = measure.machine(torch.device(arguments.device)) | {"cuda": torch.version.cuda, "missing": absent}
    failed = 0
    for stage in stages:
        if stage.number in (arguments.stage or range(1, 5)):
            print(f"Stage {stage.number}, {stage.title}, {about['device']}, at most {stage.seconds:.0f} s:", flush=True)
            failed |= summary.show([run_stage(stage, options, about)])
    return failed


if __name__ == "__main__":
    sys.exit(main())
