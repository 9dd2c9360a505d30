import io
import json
import re
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdown
import pytest
from conftest import DOGS, Source, picture, run_cli, zipped

from imletriton.data.catalogue import ADAPTIVE_URL, KNOWN, published
from imletriton.data.fetching import CHUNK, get
from imletriton.data.files import list_images
from imletriton.data.folder import read_folder
from imletriton.data.unpacking import unpack
from imletriton.errors import InputError

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.stem in KNOWN)


def tarred(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries


def names_in(folder: str) -> list[str]:
    return [path.name for path in list_images(folder)]


@pytest.mark.parametrize("recipe", RECIPES, ids=[f"{path.parent.name}/{path.stem}" for path in RECIPES])
def test_every_recipe_of_the_papers_agrees_with_the_catalogue(recipe: Path) -> None:
    text = recipe.read_text()
    known, values = KNOWN[recipe.stem], tomllib.loads(text)
    assert values["data"] == {"source": f"datasets/{known.folder}", "resolution": known.resolution}
    assert f"{'about ' if known.about else ''}{known.images} images at 256x256" in text
    adaptive, rejection = re.search(r"Adaptive IMLE ([\d.]+), RS-IMLE ([\d.]+)\.\n", text).groups()  # type: ignore[union-attr]
    metrics = published(values["data"]["source"])
    assert (metrics["Adaptive IMLE"]["fid"], metrics["RS-IMLE"]["fid"]) == (float(adaptive), float(rejection))
    if known.archive and not known.inside:
        assert f"# Source: {known.url}\n" in text


def test_published_metrics_name_their_papers() -> None:
    assert len(KNOWN) == 9
    metrics = published("obama")
    assert metrics["RS-IMLE"] == {"fid": 14.0, "precision": 0.98, "recall": 0.82}
    assert metrics["Adaptive IMLE"] == {"fid": 25.0, "precision": 0.99, "recall": 0.68, "backtracking": 0.036}
    assert metrics["MixDL"] == {"fid": 43.4, "precision": 0.91, "recall": 0.47, "backtracking": 0.276}
    assert metrics["vanilla IMLE"] == {"fid": 37.4}
    assert published("/elsewhere/100-shot-obama") == metrics
    assert published("my/obama") == published("faces") == {}
    assert set(published("shells")) == {"FastGAN", "FakeCLR", "FreGAN", "ReGAN", "Adaptive IMLE", "RS-IMLE"}


def test_list_is_a_table_of_80_columns_and_a_json_list(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get("dog")
    monkeypatch.setattr("imletriton.cli.console.width", 80)
    assert run_cli(monkeypatch, "data", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.match(r"dog +389 +256 +Si, Zhu 2012 +none stated +43\.0 +23\.1 +yes", lines[1])
    assert {line.split()[0] for line in lines if line and line[0].islower()} == {"name", *KNOWN}
    assert run_cli(monkeypatch, "data", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(KNOWN)
    assert rows["dog"]["here"] and not rows["cat"]["here"]
    assert rows["ffhq100"]["published"]["EDM"] == {"fid": 79.1}


@pytest.mark.parametrize("within", ["AnimalFace-dog/", ""])
def test_get_fills_the_recipes_folder_whatever_the_archive_has_around_it(source: Source, within: str) -> None:
    source.files["AnimalFace-dog.zip"] = zipped(
        {f"{within}{k}.png": picture(k) for k in range(3)} | {"__MACOSX/._0.png": b"left behind by another system"}
    )
    told: list[tuple[int, int | None]] = []
    assert get("dog", progress=lambda done, total: told.append((done, total))) == Path("datasets/AnimalFace-dog")
    assert names_in("datasets/AnimalFace-dog") == ["0.png", "1.png", "2.png"]
    assert len(read_folder("datasets/AnimalFace-dog", 4)) == 3
    assert told[-1] == (len(source.files["AnimalFace-dog.zip"]),) * 2
    assert sorted(path.name for path in Path("datasets").iterdir()) == [".archives", "AnimalFace-dog"]


def test_get_leaves_pictures_that_are_there_alone(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "data", "get", "dog") == 0
    told = capsys.readouterr().out
    assert "datasets/AnimalFace-dog holds 3 images (the papers have 389)." in told
    assert "imletriton fit dog" in told
    Path("datasets/AnimalFace-dog/0.png").unlink()
    assert run_cli(monkeypatch, "data", "get", "dog") == 0
    assert "holds 2 images (the papers have 389) already: nothing fetched." in capsys.readouterr().out
    assert len(source.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on_by_itself(source: Source, ranges: bool) -> None:
    source.ranges, source.breaks_off = ranges, [2 * CHUNK + 5]
    get("dog")
    assert source.asked == ["bytes=0-", f"bytes={2 * CHUNK}-"]
    assert Path("datasets/.archives/AnimalFace-dog.zip").read_bytes() == DOGS


def test_a_download_that_keeps_breaking_off_goes_on_when_called_again(source: Source) -> None:
    source.breaks_off = [CHUNK, CHUNK, CHUNK]
    with pytest.raises(InputError, match=r"AnimalFace-dog\.zip cannot be fetched \(no connection, or it broke off\)"):
        get("dog")
    assert sorted(path.name for path in Path("datasets/.archives").iterdir()) == [".lock", "AnimalFace-dog.zip.part"]
    assert not Path("datasets/AnimalFace-dog").exists()
    get("dog")
    assert source.asked[-1] == f"bytes={3 * CHUNK}-"
    assert len(names_in("datasets/AnimalFace-dog")) == 3


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(source: Source) -> None:
    Path("datasets/.archives").mkdir(parents=True)
    Path("datasets/.archives/AnimalFace-dog.zip.part").write_bytes(DOGS + b"of another version")
    get("dog")
    assert source.asked == [f"bytes={len(DOGS) + 18}-", "bytes=0-"]


def test_an_archive_must_stay_what_was_fetched_first(source: Source) -> None:
    folder, archive = get("dog"), Path("datasets/.archives/AnimalFace-dog.zip")
    folder.rename("moved")
    get("dog")  # from the archive that is here
    assert len(source.asked) == 1
    folder.rename("moved again")
    archive.unlink()
    source.files["AnimalFace-dog.zip"] = zipped({"other.png": picture()})
    with pytest.raises(InputError, match=r"not what was fetched first.*AnimalFace-dog\.zip\.sha256 beside it too"):
        get("dog")
    assert not folder.exists()
    archive.with_name("AnimalFace-dog.zip.sha256").unlink()
    get("dog")
    assert names_in("datasets/AnimalFace-dog") == ["other.png"]


def test_an_archive_put_there_by_hand_needs_no_network(source: Source) -> None:
    Path("datasets/.archives").mkdir(parents=True)
    Path("datasets/.archives/AnimalFace-dog.zip").write_bytes(DOGS)
    assert names_in(str(get("dog"))) == ["0.png", "1.png", "2.png"]
    assert not source.asked


def test_one_archive_of_several_sets_leads_to_the_one(source: Source) -> None:
    source.files["adaptive-imle.tar"] = tarred(
        {f"datasets/{name}/{k}.png": picture(k) for name in ("FFHQ/img", "AnimalFace-dog") for k in range(2)}
    )
    assert get("ffhq100") == Path("datasets/ffhq100")
    assert names_in("datasets/ffhq100") == ["0.png", "1.png"]
    assert names_in("datasets/adaptive-imle/AnimalFace-dog") == ["0.png", "1.png"]
    Path("datasets/ffhq100").unlink()
    Path("datasets/.archives/adaptive-imle.tar").unlink()
    get("ffhq100")  # from the unpacked sets
    assert len(source.asked) == 1
    Path("datasets").rename("moved")
    assert len(list_images("moved/ffhq100")) == 2


def test_an_archive_of_unclear_folders_is_told(source: Source) -> None:
    source.files["adaptive-imle.tar"] = tarred({f"sets/{name}/a.png": picture() for name in ("faces", "dogs")})
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"in datasets/adaptive-imle/dogs, datasets/adaptive-imle/faces, and which"
        ):
            get("ffhq100")
    assert len(source.asked) == 1


def test_google_drive_is_asked_through_gdown(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, output: str, progress: Callable[[int, int], None], **options: Any) -> None:
        assert url == ADAPTIVE_URL
        if failing:
            raise gdown.exceptions.DownloadError("Too many have downloaded it:\n\n\ttry tomorrow")
        Path(output).write_bytes(tarred({"datasets/ffhq/a.png": picture()}))
        progress(1, 1)

    monkeypatch.setattr(gdown, "download", download)
    failing = True
    with pytest.raises(
        InputError, match=r"\(Too many have downloaded it\): .*\.archives/adaptive-imle\.tar by hand\.$"
    ):
        get("ffhq100")
    failing = False
    assert names_in(str(get("ffhq100"))) == ["a.png"]


def special(kind: str) -> bytes:
    """A zip archive that must not be unpacked; more of them are in HOSTILE."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", picture())
        info = zipfile.ZipInfo("b.png")
        if kind == "link":
            info.external_attr = 0o120777 << 16
        archive.writestr(info, b"/etc/passwd")
        if kind == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a.png", picture())
    content = file.getvalue()
    if kind == "encrypted":
        at = content.rindex(b"PK\1\2")
        content = content[: at + 8] + b"\1" + content[at + 9 :]
    if kind == "damaged":
        content = content.replace(b"/etc/passwd", b"/etc/shadow")
    if kind == "nul":
        content = content.replace(b"b.png", b"b\0png")
    if kind == "half":
        content = content[: len(content) // 2]
    return content


def linked(kind: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return file.getvalue()


HOSTILE = {
    "absolute": (zipped({"/tmp/a.png": picture()}), "leads out of its folder"),
    "above": (zipped({"a.png": picture(), "b/../../a.png": picture()}), "leads out of its folder"),
    "drive": (zipped({"C:a.png": picture()}), "leads out of its folder"),
    "backslashes": (zipped({"..\\a.png": picture()}), "leads out of its folder"),
    "nul": (special("nul"), "leads out of its folder"),
    "link": (special("link"), "is a link, a device or encrypted"),
    "encrypted": (special("encrypted"), "is a link, a device or encrypted"),
    "twice": (special("twice"), "occurs twice"),
    "damaged": (special("damaged"), "is damaged"),
    "half": (special("half"), "is damaged"),
    "page": (b"<html>Please log in</html>", "is damaged or not an archive"),
    "empty": (b"", "is damaged or not an archive"),
    "no images": (zipped({"a.txt": b"text"}), "holds no images"),
    "tar above": (tarred({"../a.png": picture()}), "leads out of its folder"),
    "tar symlink": (linked(tarfile.SYMTYPE), "is a link, a device or encrypted"),
    "tar hard link": (linked(tarfile.LNKTYPE), "is a link, a device or encrypted"),
    "tar device": (linked(tarfile.CHRTYPE), "is a link, a device or encrypted"),
    "half tar": (tarred({"a.png": picture() * 100})[:4096], "is damaged"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path: Path, content: bytes, words: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "archive.zip").write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        unpack(home / "archive.zip", home / "datasets" / "set")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "archive.zip", "datasets"]


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 3 * len(picture()) - 1), ("MAX_FILES", 2)])
def test_an_archive_must_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    Path("a.zip").write_bytes(zipped({f"{k}.png": picture() for k in range(3)}))
    monkeypatch.setattr(f"imletriton.data.unpacking.{limit}", value)
    with pytest.raises(InputError, match=r"entry '2\.png' exceeds"):
        unpack(Path("a.zip"), Path("set"))
    assert not Path("set").exists()


BAD = [
    (["data", "get", "dgo"], "did you mean 'dog'?"),
    (["data", "get", "horses"], "choose one of dog, cat, obama"),
    (["data", "get", "anime"], "FastGAN share (https://drive.google.com/"),
    (["data", "get", "cat"], "AnimalFace-cat.zip cannot be fetched (HTTP 404)"),
    (["data", "get", "obama"], "datasets/100-shot-obama is there but holds no images"),
    (["data", "get"], "Missing argument"),
    (["data"], "Missing command"),
    (["data", "gte"], "gte"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(
    source: Source,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("datasets/100-shot-obama").mkdir(parents=True)
    Path("datasets/100-shot-obama/notes.txt").write_text("no picture")
    assert run_cli(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_without_a_network_the_address_the_place_and_the_second_source_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMLETRITON_DATASETS_URL", "http://127.0.0.1:9/")
    assert run_cli(monkeypatch, "data", "get", "panda") == 2
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9/100-shot-panda.zip cannot be fetched (no connection" in error
    assert "put the file at datasets/.archives/100-shot-panda.zip by hand" in error
    assert ADAPTIVE_URL in error
    assert error.count("\n") == 1


def test_two_processes_do_not_fetch_at_once(source: Source) -> None:
    def again(done: int, total: int | None) -> None:
        with pytest.raises(InputError, match="Another process is fetching into datasets"):
            get("dog")

    get("dog", progress=again)


def test_a_recipe_without_its_pictures_says_how_to_get_them() -> None:
    with pytest.raises(
        InputError, match=r"'datasets/AnimalFace-dog' is not a folder: `imletriton data get dog` fetches"
    ):
        list_images("datasets/AnimalFace-dog")
    with pytest.raises(InputError, match=r"FastGAN share .* and put its pictures into datasets/skulls\.$"):
        list_images("datasets/skulls")
    Path("datasets/ffhq100").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no images .*: `imletriton data get ffhq100` fetches it\.$"):
        list_images("datasets/ffhq100")
