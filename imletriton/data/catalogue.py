"""The nine data sets of the papers: where to get their images, where to put them, and the published metrics."""

import os
from dataclasses import dataclass
from pathlib import Path

from imletriton.errors import InputError, suggestion

DATASETS = Path("datasets")  # the folder in which the recipes expect the data sets
MIRROR = "IMLETRITON_DATASETS_URL"  # environment variable with the address of a mirror that has all archives

# One archive with six data sets, shared by the authors of Adaptive IMLE.
ADAPTIVE_URL = "https://drive.google.com/uc?id=1VwFFzU8wJD1XJtfg60iLwnyBQ_cLZObL"

_MIT = "https://data-efficient-gans.mit.edu/datasets"
_FASTGAN_URL = "https://drive.google.com/file/d/1aAJCZbXNHyraJ6Mi13dSbe7pTyfPXha0/view"


@dataclass(frozen=True)
class KnownSet:
    """A data set of the papers."""

    name: str  # also of its recipe
    title: str
    images: int
    folder: str  # below DATASETS; the recipe's data.source
    source: str  # the publication that the images come from
    licence: str = "none stated: for research; check before you publish pictures or samples"
    archive: str | None = None  # what `imletriton data get` downloads, if anything
    inside: str | None = None  # the data set's folder in an archive of several data sets
    about: bool = False  # whether the number of images is approximate
    resolution: int = 256  # in the papers' experiments, in pixels

    @property
    def url(self) -> str | None:
        """The address of the archive, or None."""
        if self.archive is None:
            return None
        if mirror := os.environ.get(MIRROR):
            return f"{mirror.rstrip('/')}/{self.archive}"
        return ADAPTIVE_URL if self.inside else f"{_MIT}/{self.archive}"

    @property
    def how_to_get(self) -> str:
        """How to get the images into their folder: the second half of an error message."""
        if self.archive:
            return f"`imletriton data get {self.name}` fetches it"
        return (
            f"take it from the few-shot sets that the authors of FastGAN share ({_FASTGAN_URL}) "
            f"and put its pictures into {DATASETS / self.folder}"
        )


_SI_ZHU, _ZHAO, _FASTGAN = "Si, Zhu 2012 (AnimalFace)", "Zhao et al. 2020 (the web)", "Liu et al. 2021 (FastGAN)"
KNOWN = {
    dataset.name: dataset
    for dataset in (
        KnownSet("dog", "AnimalFace Dog", 389, "AnimalFace-dog", _SI_ZHU, archive="AnimalFace-dog.zip"),
        KnownSet("cat", "AnimalFace Cat", 160, "AnimalFace-cat", _SI_ZHU, archive="AnimalFace-cat.zip"),
        KnownSet("obama", "Obama", 100, "100-shot-obama", _ZHAO, archive="100-shot-obama.zip"),
        KnownSet("panda", "Panda", 100, "100-shot-panda", _ZHAO, archive="100-shot-panda.zip"),
        KnownSet("grumpy_cat", "Grumpy Cat", 100, "100-shot-grumpy_cat", _ZHAO, archive="100-shot-grumpy_cat.zip"),
        KnownSet(
            "ffhq100",
            "FFHQ-100: faces on similar backgrounds",
            100,
            "ffhq100",
            "Karras et al. 2019 (FFHQ)",
            licence="CC BY-NC-SA 4.0: FFHQ's; each picture has its photographer's besides",
            archive="adaptive-imle.tar",
            inside="ffhq",
        ),
        KnownSet("anime", "Anime faces", 120, "anime", _FASTGAN, about=True),
        KnownSet("skulls", "Skulls", 100, "skulls", _FASTGAN, about=True),
        KnownSet("shells", "Shells", 64, "shells", _FASTGAN),
    )
}


def find(name: str) -> KnownSet:
    """Return the data set of this name; raises InputError if there is none."""
    if name in KNOWN:
        return KNOWN[name]
    raise InputError(f"{name!r} is not the name of a data set of the papers: {suggestion(name.lower(), KNOWN)}")


def at(folder: str | Path) -> KnownSet | None:
    """Return the data set that belongs in this folder, or None."""
    path = Path(folder).absolute()
    return next((dataset for dataset in KNOWN.values() if (DATASETS / dataset.folder).absolute() == path), None)


def named_by(source: str) -> KnownSet | None:
    """Return the data set that a recipe's data.source names in any folder, such as x/datasets/skulls, or None."""
    parts = Path(source).parts[-2:]
    return next((dataset for dataset in KNOWN.values() if parts == (DATASETS.name, dataset.folder)), None)


ADAPTIVE_PAPER = "Aghabozorgi, Peng, Li, ICML 2023"
RS_PAPER = "Vashist, Peng, Li, ECCV 2024"
_COLUMNS = ("grumpy_cat", "obama", "panda", "cat", "dog", "ffhq100", "anime", "skulls", "shells")
# Method, metric, the paper that reports it, and values by _COLUMNS. FID is of 5,000 samples, precision and recall of
# 1,000. Backtracking is the LPIPS distance between the 10 % of the images that were held out and their reconstructions.
_PUBLISHED = [
    ("FastGAN", "fid", RS_PAPER, (26.6, 41.1, 10.0, 35.1, 50.7, 54.2, 69.8, 109.6, 120.9)),
    ("FakeCLR", "fid", RS_PAPER, (20.6, 29.9, 8.8, 27.4, 44.4, 62.1, 77.7, 106.5, 148.4)),
    ("FreGAN", "fid", RS_PAPER, (24.9, 33.4, 9.0, 31.0, 47.9, 50.5, 59.8, 163.3, 169.3)),
    ("ReGAN", "fid", RS_PAPER, (27.3, 45.7, 12.6, 42.1, 57.2, 87.4, 110.8, 130.7, 236.1)),
    ("MixDL", "fid", ADAPTIVE_PAPER, (24.5, 43.4, 10.6, 56.1, 81.2, 62.3)),
    ("EDM", "fid", ADAPTIVE_PAPER, (36.9, 51.3, 23.7, 48.6, 100.1, 79.1)),
    ("vanilla IMLE", "fid", ADAPTIVE_PAPER, (23.3, 37.4, 8.2, 34.4, 61.9, 54.1)),
    ("Adaptive IMLE", "fid", RS_PAPER, (19.1, 25.0, 7.6, 24.9, 43.0, 33.2, 65.8, 81.9, 108.5)),
    ("RS-IMLE", "fid", RS_PAPER, (11.5, 14.0, 3.5, 15.9, 23.1, 12.9, 35.8, 51.1, 55.4)),
    ("FastGAN", "precision", RS_PAPER, (0.91, 0.92, 0.96, 0.97, 0.96, 0.91, 0.86, 0.78, 0.92)),
    ("FakeCLR", "precision", RS_PAPER, (0.97, 0.96, 0.97, 0.99, 0.95, 0.71, 0.88, 0.66, 0.87)),
    ("FreGAN", "precision", RS_PAPER, (0.90, 0.82, 0.92, 0.95, 0.92, 0.86, 0.88, 0.66, 0.87)),
    ("ReGAN", "precision", RS_PAPER, (0.78, 0.62, 0.93, 0.90, 0.84, 0.39, 0.29, 0.66, 0.50)),
    ("MixDL", "precision", ADAPTIVE_PAPER, (0.93, 0.91, 0.93, 0.91, 0.86, 0.77)),
    ("Adaptive IMLE", "precision", RS_PAPER, (0.97, 0.99, 0.98, 0.98, 0.97, 0.99, 0.92, 0.95, 0.97)),
    ("RS-IMLE", "precision", RS_PAPER, (0.93, 0.98, 0.99, 0.96, 0.98, 1.00, 0.95, 0.99, 0.98)),
    ("FastGAN", "recall", RS_PAPER, (0.13, 0.09, 0.16, 0.08, 0.19, 0.13, 0.08, 0.03, 0.03)),
    ("FakeCLR", "recall", RS_PAPER, (0.39, 0.30, 0.41, 0.55, 0.34, 0.25, 0.09, 0.01, 0.01)),
    ("FreGAN", "recall", RS_PAPER, (0.23, 0.33, 0.17, 0.31, 0.20, 0.21, 0.09, 0.01, 0.01)),
    ("ReGAN", "recall", RS_PAPER, (0.04, 0.01, 0.01, 0.15, 0.10, 0.01, 0.01, 0.01, 0.01)),
    ("MixDL", "recall", ADAPTIVE_PAPER, (0.35, 0.47, 0.30, 0.50, 0.15, 0.30)),
    ("Adaptive IMLE", "recall", RS_PAPER, (0.72, 0.68, 0.63, 0.86, 0.61, 0.77, 0.59, 0.32, 0.62)),
    ("RS-IMLE", "recall", RS_PAPER, (0.95, 0.82, 0.97, 0.98, 0.94, 0.99, 0.91, 0.65, 0.59)),
    ("FastGAN", "backtracking", ADAPTIVE_PAPER, (0.357, 0.370, 0.339, 0.467, 0.430, 0.357)),
    ("FakeCLR", "backtracking", ADAPTIVE_PAPER, (0.467, 0.446, 0.479, 0.570, 0.602, 0.316)),
    ("MixDL", "backtracking", ADAPTIVE_PAPER, (0.296, 0.276, 0.264, 0.305, 0.274, 0.221)),
    ("Adaptive IMLE", "backtracking", ADAPTIVE_PAPER, (0.058, 0.036, 0.039, 0.074, 0.072, 0.014)),
]


def published(source: str) -> dict[str, dict[str, float]]:
    """Return the metrics that the papers report for a data set, {method: {metric: value}}, which may be none.

    Args:
        source: The name of the data set, or a path that ends with its folder.
    """
    rows: dict[str, dict[str, float]] = {}
    for name in (s.name for s in KNOWN.values() if source == s.name or Path(source).name == s.folder):
        for method, metric, _, values in _PUBLISHED:
            by_dataset = dict(zip(_COLUMNS, values, strict=False))  # the Adaptive IMLE paper has the first six only
            if name in by_dataset:
                rows.setdefault(method, {})[metric] = by_dataset[name]
    return rows
