from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imletriton.data import BUILT_IN, count_points, load_points
from imletriton.data.faces import faces
from imletriton.data.folder import read_image
from imletriton.errors import InputError


def halves(mode: str = "RGB", left: object = (255, 0, 0), right: object = (0, 0, 255)) -> Image.Image:
    """A 40 x 20 picture: its left half in one colour, its right half in another."""
    image = Image.new(mode, (40, 20), left)
    image.paste(right, (20, 0, 40, 20))
    return image


def colours(picture: np.ndarray) -> np.ndarray:
    """The colours left and right of the middle, [2, 3]; Lanczos rings a little near the edge between them."""
    middle = picture.shape[0] // 2
    return picture[middle, [1, -2]].astype(int)


def near(picture: np.ndarray, expected: list[list[int]], tolerance: int = 2) -> bool:
    return bool(np.abs(colours(picture) - np.array(expected)).max() <= tolerance)


RED_BLUE = [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg"])
def test_every_format_is_cropped_and_resized(tmp_path: Path, suffix: str) -> None:
    halves().save(tmp_path / f"a.{suffix}", **({"quality": 100} if suffix in ("jpg", "webp") else {}))
    picture = read_image(tmp_path / f"a.{suffix}", 8)
    assert picture.shape == (8, 8, 3)
    assert picture.dtype == np.uint8
    assert near(picture, RED_BLUE, tolerance=8)


def save(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    return read_image(path, 8)


def test_a_palette_keeps_its_colours(tmp_path: Path) -> None:
    assert near(save(halves().quantize(2), tmp_path / "a.png"), RED_BLUE)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    half = halves("RGBA", (255, 0, 0, 255), (0, 0, 255, 0))
    assert near(save(half, tmp_path / "a.png"), [[255, 0, 0], [255, 255, 255]])
    palette = halves().quantize(2)
    palette.info["transparency"] = palette.getpixel((30, 10))
    assert near(save(palette, tmp_path / "b.png"), [[255, 0, 0], [255, 255, 255]])
    grey = halves("LA", (100, 255), (0, 0))
    assert near(save(grey, tmp_path / "c.png"), [[100] * 3, [255] * 3])


def test_grey_bilevel_and_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    assert near(save(halves("L", 0, 200), tmp_path / "a.png"), [[0] * 3, [200] * 3])
    assert near(save(halves("1", 0, 1), tmp_path / "b.png"), [[0] * 3, [255] * 3])
    deep = np.zeros((20, 40), np.uint16)
    deep[:, 20:] = 200 * 257
    assert near(save(Image.fromarray(deep), tmp_path / "c.png"), [[0] * 3, [200] * 3])
    assert near(save(Image.fromarray(deep), tmp_path / "d.tiff"), [[0] * 3, [200] * 3])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    left, right = colours(save(halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), tmp_path / "a.tiff"))
    assert left[0] > 200 > 60 > max(left[1:])
    assert right[2] > 200 > 60 > max(right[:2])


def test_exif_rotation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert near(save(halves(), tmp_path / "a.png", exif=exif), RED_BLUE[::-1])


def test_the_crop_is_central_and_tall_pictures_work(tmp_path: Path) -> None:
    tall = Image.new("RGB", (10, 100), "white")
    tall.paste("black", (0, 45, 10, 55))
    assert save(tall, tmp_path / "a.png").max() < 10


def test_a_folder_is_one_tensor_in_the_order_of_names(tmp_path: Path) -> None:
    for name, colour in [("b.png", "white"), ("a.png", "black"), ("sub/c.PNG", "red")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), colour).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "._a.png").write_text("left behind by another system")
    points = load_points(str(tmp_path), 4)
    assert points.shape == (3, 3, 4, 4)
    assert points.dtype == torch.uint8
    assert points[:, :, 0, 0].tolist() == [[0, 0, 0], [255, 255, 255], [255, 0, 0]]


def test_mirror_doubles_the_data(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        halves().save(tmp_path / name)
    points = load_points(str(tmp_path), 8, mirror=True)
    assert torch.equal(points[2:], points[:2].flip(3))


@pytest.mark.parametrize("content", [b"", b"no picture at all", "truncated"])
def test_broken_files_are_all_named(tmp_path: Path, content: bytes | str) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    for name in ("bad1.png", "bad2.png"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"2 of 3 images .*bad1\.png.*bad2\.png"):
        load_points(str(tmp_path), 8)


def test_a_folder_that_cannot_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_points(str(tmp_path / "none"), 8)
    with pytest.raises(InputError, match="holds no images"):
        load_points(str(tmp_path), 8)
    halves().save(tmp_path / "only.png")
    with pytest.raises(InputError, match=r"one image only \(only\.png\)"):
        load_points(str(tmp_path), 8)


def test_the_faces_are_a_hundred_distinct_ones_and_always_the_same() -> None:
    faces = load_points("faces", 64)
    assert faces.shape == (100, 3, 64, 64)
    assert torch.equal(faces, load_points("faces", 64))
    flat = faces.flatten(1).double()
    distances = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    assert distances.min() > 0.1 * distances[distances.isfinite()].mean()


def test_toy2d_is_points_in_the_plane() -> None:
    assert load_points("toy2d", 256).shape == (12, 2)


def test_any_number_of_other_faces_can_be_drawn() -> None:
    others = faces(8, count=120, seed=1)
    assert others.shape == (120, 8, 8, 3)
    built_in = {face.tobytes() for face in faces(8)}
    assert len({face.tobytes() for face in others} | built_in) == 220


@pytest.mark.parametrize("source", BUILT_IN)
@pytest.mark.parametrize(("mirror", "holdout"), [(False, 0.0), (True, 0.1)])
def test_points_are_counted_as_they_are_loaded(source: str, mirror: bool, holdout: float) -> None:
    assert count_points(source, mirror, holdout) == len(load_points(source, 8, mirror, holdout))
