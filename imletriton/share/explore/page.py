"""The page of `imletriton explore`, made with Gradio."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from einops import rearrange

from imletriton.errors import InputError
from imletriton.share.explore.explorer import PARTS, Explorer, Picture

P = ParamSpec("P")
T = TypeVar("T")

SMALL = 64  # pixels a side, up to which many pictures are made at once, and each pixel is shown as a square
TABS = ("Neighbours", "Mix", "Interpolate", "Project", "Favourites")
MIXES = ("the chosen one", *PARTS, "coarse, middle", "coarse, fine", "middle, fine", "the second one")


def told(function: Callable[P, T]) -> Callable[P, T]:
    """Let the page show what an InputError says."""

    @functools.wraps(function)
    def telling(*arguments: P.args, **more: P.kwargs) -> T:
        try:
            return function(*arguments, **more)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return telling


def pixels(picture: Picture | Any) -> Any:
    """The image of a picture as Gradio takes it, uint8 [H, W, 3]."""
    return rearrange(picture.image, "c h w -> h w c").numpy()


class Page:
    """The page: what it consists of, and what happens in it.

    Args:
        explorer: The model.
        work: A folder for the files of the page.
        favourites: The folder of the favourites; None where visitors shall not write to this machine.
    """

    def __init__(self, explorer: Explorer, work: Path, favourites: Path | None) -> None:
        self.explorer, self.work, self.favourites = explorer, work, favourites
        self.many, self.few = (36, 12) if explorer.resolution <= SMALL else (12, 6)
        with gr.Blocks(title=f"{explorer.source.name}: explore", analytics_enabled=False) as self.blocks:
            self._lay_out()
            self._connect()

    # -- what is on the page ------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        source, side = self.explorer.source, self.explorer.resolution
        gr.Markdown(f"# {source.title}\nPictures of {side}x{side} pixels. Click one to choose it.", elem_id="title")
        self.samples, self.around, self.mixes, self.kept = (gr.State([]) for _ in range(4))
        self.chosen, self.second, self.on_the_way = (gr.State(None) for _ in range(3))
        self.tab, self.noise = gr.State(TABS[0]), gr.State(0)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                with gr.Row(elem_classes="pair"):
                    self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
                    self.next_seed = gr.Button("Next seed", elem_id="next-seed")
                self.grid = self._gallery("samples")
            with gr.Column(scale=1, min_width=320, elem_id="work"):
                with gr.Row(elem_classes="pair tops"):
                    self.large = self._picture("Chosen", "chosen")
                    self.nearest = self._picture("Nearest training picture", "nearest")
                self.about = gr.Markdown(elem_id="about", elem_classes="said")
                with gr.Row(elem_classes="pair"):
                    self.keep = gr.Button("♥ Keep", variant="primary", elem_id="keep", visible=bool(self.favourites))
                    self.download = gr.DownloadButton("Download", elem_id="download")
                    self.set_second = gr.Button("Use as second", elem_id="set-second")
                contents = (self._near, self._mix, self._between, self._project, self._keep)
                with gr.Tabs(overflow_behavior="wrap"):
                    self.tabs = [self._tab(name, lay_out) for name, lay_out in zip(TABS, contents, strict=True)]

    def _tab(self, name: str, lay_out: Callable[[], None]) -> Any:
        with gr.Tab(name, id=name, visible=name != "Favourites" or self.favourites is not None) as tab:
            lay_out()
        return tab

    def _near(self) -> None:
        with gr.Row(elem_classes="pair"):
            self.reach = gr.Slider(0, 1, 0.3, step=0.01, label="Distance", elem_id="distance", buttons=[], scale=3)
            self.others = gr.Button("Others", elem_id="others", scale=1)
        self.near = self._gallery("neighbours")

    def _mix(self) -> None:
        gr.Markdown(
            "The chosen picture with parts of the second one. *Coarse* decides on the layout, *middle* on shapes, "
            "*fine* on colours and details. “Use as second” makes the chosen picture the second one.",
            elem_classes="hint",
        )
        self.mixed = self._gallery("mixes", "named")

    def _between(self) -> None:
        with gr.Row(elem_classes="pair"):
            self.start, self.middle, self.end = (
                self._picture(label, name)
                for label, name in (("Chosen", "start"), ("Between", "between"), ("Second", "end"))
            )
        self.way = gr.Slider(
            0,
            1,
            0.5,
            step=0.01,
            label="How far from the chosen picture to the second one",
            elem_id="scrubber",
            buttons=[],
        )
        self.take = gr.Button("Choose the one between", elem_id="take")

    def _project(self) -> None:
        gr.Markdown(
            "The picture of this model that is most like your photo becomes the chosen one.", elem_classes="hint"
        )
        with gr.Row(elem_classes="pair"):
            self.photo = gr.Image(
                label="Photo", sources=["upload"], type="filepath", elem_id="photo", height=260, buttons=[]
            )
            # Gradio would open the file, in any format; `Explorer.project` is warier.
            self.photo.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
            self.projected = self._picture("The model's most similar picture", "projected")

    def _keep(self) -> None:
        gr.Markdown(
            f"“♥ Keep” saves the chosen picture in `{self.favourites}`. The PNG file holds its seed and its latent "
            "code, so that `imletriton gen` can make more like it.",
            elem_classes="hint",
        )
        self.favourite = self._gallery("favourites")

    def _gallery(self, name: str, *classes: str) -> gr.Gallery:
        return gr.Gallery(
            show_label=False,
            elem_id=name,
            elem_classes=["pictures", *self._sharp, *classes],
            format="png",
            allow_preview=False,
            interactive=False,
            buttons=[],
            height="auto",
            object_fit="contain",
        )

    def _picture(self, label: str, name: str) -> gr.Image:
        return gr.Image(
            label=label,
            elem_id=name,
            elem_classes=["picture", *self._sharp],
            format="png",
            interactive=False,
            buttons=[],
        )

    @property
    def _sharp(self) -> list[str]:
        """The class of small pictures, whose pixels are shown as squares."""
        return ["sharp"] if self.explorer.resolution <= SMALL else []

    # -- what happens on it -------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        chosen_views = [self.chosen, self.large, self.about, self.download]
        pages = [self.around, self.near, self.mixes, self.mixed, self.on_the_way, self.start, self.middle, self.end]
        controls = [self.tab, self.chosen, self.second, self.reach, self.noise, self.way]

        def then_the_rest(event: Any) -> None:
            event = event.success(told(self.show_tab), controls, pages, **quiet)
            event.success(self.show_nearest, self.chosen, [self.nearest, self.about], **quiet)

        new = [self.samples, self.grid]
        filled = self.blocks.load(told(self.show_samples), self.seed, new, **quiet)
        filled.success(self.show_favourites, None, [self.kept, self.favourite], **quiet)
        first = filled.success(lambda samples: samples[1], self.samples, self.second, **quiet)
        then_the_rest(first.success(told(lambda samples: self.show(samples[0])), self.samples, chosen_views, **quiet))
        self.seed.change(told(self.show_samples), self.seed, new, trigger_mode="always_last", **quiet)
        self.next_seed.click(lambda seed: (int(seed or 0) + 1) % 2**32, self.seed, self.seed, **quiet)
        for pictures, gallery in (
            (self.samples, self.grid),
            (self.around, self.near),
            (self.mixes, self.mixed),
            (self.kept, self.favourite),
        ):
            then_the_rest(gallery.select(told(self.pick), pictures, chosen_views, **quiet))
        then_the_rest(self.take.click(told(self.show), self.on_the_way, chosen_views, **quiet))
        self.set_second.click(lambda chosen: chosen, self.chosen, self.second, **quiet).success(
            told(self.show_tab), controls, pages, **quiet
        )
        for name, tab in zip(TABS, self.tabs, strict=True):
            tab.select(functools.partial(str, name), None, self.tab, **quiet).success(
                told(self.show_tab), controls, pages, **quiet
            )
        self.reach.release(told(self.show_tab), controls, pages, **quiet)
        self.others.click(lambda noise: noise + 1, self.noise, self.noise, **quiet).success(
            told(self.show_tab), controls, pages, **quiet
        )
        scrub = [self.on_the_way, self.middle]
        ends = [self.chosen, self.second, self.way]
        self.way.input(told(self.show_between), ends, scrub, trigger_mode="always_last", **quiet)
        found = self.photo.upload(
            told(self.project), self.photo, [self.chosen, self.projected], api_visibility="private", concurrency_limit=1
        )
        then_the_rest(found.success(told(self.show), self.chosen, chosen_views, **quiet))
        if self.favourites:
            self.keep.click(told(self.save), self.chosen, None, **quiet).success(
                self.show_favourites, None, [self.kept, self.favourite], **quiet
            )

    def show_samples(self, seed: float | None) -> tuple[Any, ...]:
        pictures = self.explorer.samples(self.many, int(seed or 0))
        return pictures, list(map(pixels, pictures))

    def pick(self, pictures: list[Picture], event: gr.SelectData) -> tuple[Any, ...]:
        return self.show(pictures[event.index])

    def show(self, picture: Picture) -> tuple[Any, ...]:
        file = self.explorer.save(picture, self.work)
        return picture, str(file), self.described(picture), str(file)

    def show_nearest(self, picture: Picture) -> tuple[Any, ...]:
        try:
            nearest = self.explorer.nearest(picture)
        except InputError as reason:
            return None, self.described(picture, str(reason))
        ours, theirs = f"{nearest.distance:.3f}", f"{nearest.spacing:.3f}"
        verdict = (
            f"A variation of that training picture: no other one is as near to it ({ours} against {theirs})."
            if nearest.distance < nearest.spacing
            else f"New: that training picture has another one nearer to it than this ({theirs} against {ours})."
        )
        return pixels(nearest), self.described(picture, verdict)

    @staticmethod
    def described(picture: Picture, verdict: str = "\u00a0") -> str:
        return f"**{picture.made[:1].upper()}{picture.made[1:]}**\n\n{verdict}"

    def show_tab(
        self, tab: str, chosen: Picture, second: Picture, reach: float, noise: int, way: float
    ) -> tuple[Any, ...]:
        """Make what the open tab shows, and leave the others until they are opened."""
        near = mixed = between = None
        if chosen is None or second is None:  # the page is still being filled
            tab = ""
        if tab == "Neighbours":
            near = self.explorer.neighbours(chosen, self.few, reach, noise)
        elif tab == "Mix":
            mixed = self.explorer.mixes(chosen, second)
        elif tab == "Interpolate":
            between = self.explorer.between(chosen, second, way)
        skip = gr.skip()
        return (
            near or skip,
            list(map(pixels, near)) if near else skip,
            mixed or skip,
            list(zip(map(pixels, mixed), MIXES, strict=True)) if mixed else skip,
            between or skip,
            *([pixels(p) for p in (chosen, between, second)] if between else [skip] * 3),
        )

    def show_between(self, chosen: Picture, second: Picture, way: float) -> tuple[Any, ...]:
        picture = self.explorer.between(chosen, second, way)
        return picture, pixels(picture)

    def project(self, photo: str | None, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        if photo is None:
            return gr.skip(), None
        picture = self.explorer.project(Path(photo), lambda share: progress(share, "searching"))
        return picture, pixels(picture)

    def save(self, picture: Picture) -> None:
        assert self.favourites
        gr.Info(f"Saved as {self.explorer.save(picture, self.favourites)}", duration=4)

    def show_favourites(self) -> tuple[Any, ...]:
        pictures = self.explorer.saved(self.favourites) if self.favourites else []
        return pictures, list(map(pixels, pictures))
