"""The page of `imletriton explore`, made with Gradio."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from einops import rearrange

from imletriton.errors import InputError
from imletriton.share.explore.explorer import PARTS, Explorer, Picture

SMALL = 64  # pixels a side, up to which many pictures are made at once, and pixels are shown as squares
TABS = ("Neighbours", "Mix", "Interpolate", "Project", "Favourites")
MIXES = ("the chosen one", *PARTS, "coarse, middle", "coarse, fine", "middle, fine", "the second one")


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the page show the message of an InputError."""

    @functools.wraps(function)
    def telling(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return telling


def pixels(picture: Picture | Any) -> Any:
    """The image of a picture as Gradio takes it, uint8 [H, W, 3]."""
    return rearrange(picture.image, "c h w -> h w c").numpy()


class Page:
    """The page: its layout, and what its controls do.

    Args:
        explorer: The model.
        work: A folder for the files of the page.
        favourites: The folder of the favourites; None where visitors must not write to this machine.
    """

    def __init__(self, explorer: Explorer, work: Path, favourites: Path | None) -> None:
        self.explorer, self.work, self.favourites = explorer, work, favourites
        self.sharp = ["sharp"] if explorer.resolution <= SMALL else []
        self.many, self.few = (36, 12) if self.sharp else (12, 6)
        with gr.Blocks(title=f"{explorer.source.name}: explore", analytics_enabled=False) as self.blocks:
            self._lay_out()
            self._connect()

    # -- the layout ---------------------------------------------------------------------------------------------------

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
        self._hint(
            "The chosen picture with parts of the second one: *coarse* is the layout, *middle* the shapes, *fine* the "
            "colours and details. “Use as second” makes the chosen picture the second one."
        )
        self.mixed = self._gallery("mixes", "named")

    def _between(self) -> None:
        with gr.Row(elem_classes="pair"):
            self.start = self._picture("Chosen", "start")
            self.middle = self._picture("Between", "between")
            self.end = self._picture("Second", "end")
        label = "From the chosen picture to the second one"
        self.way = gr.Slider(0, 1, 0.5, step=0.01, label=label, elem_id="scrubber", buttons=[])
        self.take = gr.Button("Choose the one between", elem_id="take")

    def _project(self) -> None:
        self._hint("Of the pictures that this model can make, the one most like your photo becomes the chosen one.")
        with gr.Row(elem_classes="pair"):
            self.photo = gr.Image(
                label="Photo", sources=["upload"], type="filepath", elem_id="photo", height=260, buttons=[]
            )
            # Gradio would open the file, in any format; `Explorer.project` is more careful.
            self.photo.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
            self.projected = self._picture("The model's most similar picture", "projected")

    def _keep(self) -> None:
        self._hint(
            f"“♥ Keep” saves the chosen picture in `{self.favourites}`. The PNG file holds its seed and its latent "
            "code, so that `imletriton gen --like` can make more like it."
        )
        self.favourite = self._gallery("favourites")

    def _hint(self, text: str) -> None:
        gr.Markdown(text, elem_classes="hint")

    def _gallery(self, name: str, *classes: str) -> gr.Gallery:
        return gr.Gallery(
            show_label=False,
            elem_id=name,
            elem_classes=["pictures", *self.sharp, *classes],
            format="png",
            allow_preview=False,
            interactive=False,
            buttons=[],
            height="auto",
            object_fit="contain",
        )

    def _picture(self, label: str, name: str) -> gr.Image:
        classes = ["picture", *self.sharp]
        return gr.Image(label=label, elem_id=name, elem_classes=classes, format="png", interactive=False, buttons=[])

    # -- what the controls do -----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        def on(event: Callable[..., Any], function: Callable[..., Any], given: Any, changes: Any, **more: Any) -> Any:
            """Let an event call a function with the values of some components, and change others to what it returns."""
            settings = {"api_visibility": "private", "show_progress": "hidden"} | more
            return event(told(function), given, changes, **settings)

        def show_tab(event: Callable[..., Any], **more: Any) -> Any:
            given = [self.tab, self.chosen, self.second, self.reach, self.noise, self.way]
            pages = [self.around, self.near, self.mixes, self.mixed, self.on_the_way, self.start, self.middle, self.end]
            return on(event, self.show_tab, given, pages, **more)

        def choose(event: Callable[..., Any], function: Callable[..., Any], given: Any) -> None:
            """Let an event choose a picture, and then show the open tab and the nearest training picture."""
            chosen = on(event, function, given, [self.chosen, self.large, self.about, self.download])
            on(show_tab(chosen.success).success, self.show_nearest, self.chosen, [self.nearest, self.about])

        new, favourites = [self.samples, self.grid], [self.kept, self.favourite]
        filled = on(self.blocks.load, self.show_samples, self.seed, new)
        on(filled.success, self.show_favourites, None, favourites)
        second = on(filled.success, lambda samples: samples[1], self.samples, self.second)
        choose(second.success, lambda samples: self.show(samples[0]), self.samples)

        on(self.seed.change, self.show_samples, self.seed, new, trigger_mode="always_last")
        on(self.next_seed.click, lambda seed: (int(seed or 0) + 1) % 2**32, self.seed, self.seed)
        choose(self.grid.select, self.pick, self.samples)
        choose(self.near.select, self.pick, self.around)
        choose(self.mixed.select, self.pick, self.mixes)
        choose(self.favourite.select, self.pick, self.kept)
        choose(self.take.click, self.show, self.on_the_way)
        show_tab(on(self.set_second.click, lambda chosen: chosen, self.chosen, self.second).success)
        for name, tab in zip(TABS, self.tabs, strict=True):
            show_tab(on(tab.select, lambda name=name: name, None, self.tab).success)
        show_tab(self.reach.release)
        show_tab(on(self.others.click, lambda noise: noise + 1, self.noise, self.noise).success)
        between = [self.chosen, self.second, self.way], [self.on_the_way, self.middle]
        on(self.way.input, self.show_between, *between, trigger_mode="always_last")
        projected = [self.chosen, self.projected]
        found = on(self.photo.upload, self.project, self.photo, projected, show_progress="full", concurrency_limit=1)
        choose(found.success, self.show, self.chosen)
        if self.favourites:
            saved = on(self.keep.click, self.save, self.chosen, None)
            on(saved.success, self.show_favourites, None, favourites)

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
            f"A variation of that training picture, nearer to it ({ours}) than all other training pictures ({theirs})."
            if nearest.distance < nearest.spacing
            else f"New: that training picture is nearer to another one ({theirs}) than to this picture ({ours})."
        )
        return pixels(nearest), self.described(picture, verdict)

    @staticmethod
    def described(picture: Picture, verdict: str = "\u00a0") -> str:
        return f"**{picture.made[:1].upper()}{picture.made[1:]}**\n\n{verdict}"

    def show_tab(
        self, tab: str, chosen: Picture, second: Picture, reach: float, noise: int, way: float
    ) -> tuple[Any, ...]:
        """Make the pictures of the open tab; the other tabs wait until they are opened."""
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
