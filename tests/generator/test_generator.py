import json
import re
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counts import OperatorCounts
from imletriton.errors import InputError
from imletriton.generator import Generator, latent_codes, latent_codes_at, latent_loop, slerp
from imletriton.generator.blocks import Block, parse_blocks
from imletriton.generator.decoders.vdvae import DecoderBlock, adain_gelu
from imletriton.generator.parameters import PAPER_BLOCKS
from imletriton.runs.checkpoint import save_checkpoint

SMALL = {"latent_dim": 6, "mapping_layers": 2, "width": 8, "blocks": "1x1,4m1,8m4"}


@pytest.fixture
def small() -> Generator:
    torch.manual_seed(0)
    return Generator(**SMALL).eval()


def test_the_papers_generator_has_their_size_and_cost() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as flops:
        generator = Generator()
        images = generator(torch.empty(1, 1024))
    assert images.shape == (1, 3, 256, 256)
    assert sum(p.numel() for p in generator.parameters()) == pytest.approx(36.6e6, rel=0.002)
    papers, pixels = 63.2e9, [(4, 1), (8, 4), (16, 8), (32, 16), (64, 32), (128, 64), (256, 128)]
    # Where a block upsamples, its first convolution, 384 to 96 channels, comes before that here.
    spared = sum(2 * 384 * 96 * (after**2 - before**2) for after, before in pixels)
    # The last block's last convolution and the one to RGB are one; what goes round them has three channels at 64x64.
    spared += 2 * (384 * 96 + 3 * 384) * 256**2 - 2 * (3 * 96 * 256**2 + 3 * 384 * 64**2)
    assert flops.get_total_flops() == pytest.approx(papers - spared, rel=0.002)


def test_blocks_are_read() -> None:
    assert parse_blocks("4x2, 8m4,8x1") == [Block(4, None), Block(4, None), Block(8, 4), Block(8, None)]
    assert len(parse_blocks(PAPER_BLOCKS)) == 28


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "x4", "4x0", "0x1", "4y1", "8m4", "4x1,8x1", "4x1,10m4", "4x1,4m4", "4x1,2m4"]
)
def test_blocks_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text.split(",")[-1]))):
        parse_blocks(text)


@pytest.mark.parametrize("blocks", ["1x1", "4x2", "1x1,4m1,8m4", "2x1,8m2,8x1"])
def test_the_last_block_and_the_colours_are_what_they_are_one_after_the_other(blocks: str) -> None:
    """Both joined in one step, against both as the papers have them: the images and all gradients."""
    torch.manual_seed(0)
    generator = Generator(latent_dim=6, mapping_layers=2, width=8, blocks=blocks).double()
    decoder = generator.decoder
    with torch.no_grad():  # gain, biases and the head are not as they start
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    z, pull = torch.randn(3, 6).double(), torch.randn(3, *generator.shape).double()

    def one_after_the_other(z: torch.Tensor) -> torch.Tensor:
        w = generator.mapping(z)
        x = decoder.constant.expand(len(z), -1, -1, -1)
        styles = rearrange(decoder.styles(w), "b (block two c) -> block two b c", two=2, c=decoder.width)
        for block, (scale, shift) in zip(decoder.blocks, styles, strict=True):
            x = block(x, scale, shift)
        return decoder.to_rgb(decoder.gain * x + decoder.bias)

    results = []
    for forward in (one_after_the_other, generator):
        generator.zero_grad()
        images = forward(z)
        (images * pull).sum().backward()
        results.append([images.detach(), *(p.grad for p in generator.parameters())])
    for expected, joined in zip(*results, strict=True):
        torch.testing.assert_close(joined, expected.to(joined.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", ["1x1", "3x1,6m3", "4x1,16m4", "5x2"])
def test_any_resolution_works(blocks: str) -> None:
    generator = Generator(latent_dim=3, mapping_layers=1, width=5, blocks=blocks, bottleneck=0.1)
    side = parse_blocks(blocks)[-1].resolution
    assert generator(torch.randn(2, 3)).shape == (2, 3, side, side)


def test_a_style_decides_where_the_blocks_start_and_bilinear_upsampling_smooths_what_goes_past_them() -> None:
    keys = {"latent_dim": 3, "mapping_layers": 1, "width": 5, "blocks": "4x1,8m4,24m8", "bottleneck": 1.0}
    torch.manual_seed(0)
    generator = Generator(**keys, start="style", upsampling="bilinear")
    z = torch.randn(2, 3)

    def by_definition() -> Tensor:
        decoder, w = generator.decoder, generator.style(z)
        x, styles = decoder.constant + decoder.start(w).view(2, 5, 4, 4), decoder.styles(w).chunk(6, 1)
        for block, scale, shift in zip(decoder.blocks, styles[::2], styles[1::2], strict=True):
            normed, activated = adain_gelu(x, scale, shift, normalise=True)
            out = F.interpolate(block.convs[0](activated), scale_factor=block.factor, mode="nearest")
            for conv in block.convs[1:]:
                out = conv(F.gelu(out))
            x = F.interpolate(normed, scale_factor=block.factor, mode="bilinear") + out
        return decoder.to_rgb(decoder.gain * x + decoder.bias)

    torch.testing.assert_close(generator(z), by_definition(), atol=1e-5, rtol=1e-5)
    other = torch.randn(2, 3)
    torch.testing.assert_close(generator.mix(z, z, z), generator(z))
    assert not torch.allclose(generator.mix(z, other, other), generator(other))
    for wrong in ({"upsampling": "cubic"}, {"start": "noise"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Generator(**keys, **wrong)


@pytest.mark.parametrize("patch", [2, 3])
def test_each_place_of_the_last_maps_draws_a_square_of_pixels(patch: int) -> None:
    keys = {"latent_dim": 3, "mapping_layers": 1, "width": 5, "blocks": "4x1,8m4", "bottleneck": 1.0, "patch": patch}
    torch.manual_seed(0)
    nearest, bilinear = Generator(**keys), Generator(**keys, upsampling="bilinear")
    z = torch.randn(2, 3)

    def squares(generator: Generator) -> Tensor:
        decoder, w = generator.decoder, generator.style(z)
        x, styles = decoder.constant.expand(2, -1, -1, -1), decoder.styles(w).chunk(4, 1)
        for block, scale, shift in zip(decoder.blocks, styles[::2], styles[1::2], strict=True):
            x = block(x, scale, shift)
        return rearrange(decoder.to_rgb(decoder.gain * x + decoder.bias), "b (c u v) h w -> b c u v h w", u=patch, c=3)

    def laid_out(x: Tensor) -> Tensor:
        return rearrange(x, "b c u v h w -> b c (h u) (w v)")

    assert nearest.shape == (3, 8 * patch, 8 * patch)
    torch.testing.assert_close(nearest(z), laid_out(squares(nearest)), atol=1e-5, rtol=1e-5)
    x = squares(bilinear)
    mean = x.mean((2, 3))
    smooth = F.interpolate(mean, scale_factor=patch, mode="bilinear")
    expected = laid_out(x - rearrange(mean, "b c h w -> b c 1 1 h w")) + smooth
    torch.testing.assert_close(bilinear(z), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bilinear.mix(z, z, z), bilinear(z))
    with pytest.raises(InputError, match="patch"):
        Generator(**keys | {"patch": 17})


def test_different_latents_give_different_images_from_the_start() -> None:
    torch.manual_seed(0)
    images = Generator(latent_dim=64, width=32, blocks="4x4,8m4,16m8")(torch.randn(16, 64))
    assert images.std(0).mean() > 0.1 * images.std()


@pytest.mark.parametrize("side", [1, 8])
def test_a_block_starts_with_instance_norm_scaled_and_shifted_by_the_style(side: int) -> None:
    block = DecoderBlock(Block(side, None), width=5, middle=2, depth=1)
    x, scale, shift = torch.randn(3, 5, side, side) * 3 + 100, *torch.randn(2, 3, 5)
    normed = F.instance_norm(x.double(), eps=1e-2) if side > 1 else x
    expected = normed * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(block.branches(x, scale, shift)[0].double(), expected.double(), atol=1e-4, rtol=1e-4)


def test_styles_start_at_a_scale_of_one_and_a_shift_of_zero(small: Generator) -> None:
    styles = small.decoder.styles
    torch.nn.init.zeros_(styles.weight)
    assert styles(torch.randn(1, 6))[0].tolist() == ([1.0] * 8 + [0.0] * 8) * 3


@pytest.mark.parametrize(
    "keys",
    [
        SMALL,
        SMALL | {"start": "style", "upsampling": "bilinear"},
        {"latent_dim": 6, "mapping": "none", "decoder": "mlp", "width": 4},
    ],
)
def test_weights_held_in_bfloat16_give_the_same_bits_without_casts(keys: dict[str, object]) -> None:
    torch.manual_seed(0)
    generator = Generator(**keys)
    working, z = generator.for_autocast(), torch.randn(3, 6)
    results = []
    for each in (generator, working):
        weights = list(each.parameters())
        with OperatorCounts(weights) as counted:
            with torch.autocast("cpu", torch.bfloat16):
                samples = each(z)
            gradients = torch.autograd.grad((samples * samples.detach()).sum(), weights)
        results.append([samples.detach(), *(gradient.float() for gradient in gradients)])
    assert counted.weight_casts == 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    pairs = list(zip(generator.parameters(), working.parameters(), strict=True))
    assert {copy.dtype for weight, copy in pairs if copy is not weight} == {torch.bfloat16}
    for weight, copy in pairs:
        assert copy is weight or torch.equal(copy, weight.bfloat16())


def test_mixing_gives_each_third_of_the_blocks_its_own_style() -> None:
    torch.manual_seed(0)
    small = Generator(**SMALL | {"blocks": "4x1,8m4,16m8"}).eval()
    one, other = latent_codes(0, 4, 6, seed=0), latent_codes(4, 8, 6, seed=0)
    torch.nn.init.normal_(small.decoder.styles.weight)
    with torch.no_grad():
        assert torch.equal(small.mix(one, one, one), small(one))
        for block, mixed in enumerate([(other, one, one), (one, other, one), (one, one, other)]):
            expected = deepcopy(small)
            styles = expected.decoder.styles
            rows = slice(16 * block, 16 * (block + 1))  # of a block: 8 scales and 8 shifts
            style = small.decoder.styles(small.mapping(other))
            for k in range(len(one)):  # a style that does not depend on z stands for the other code's
                styles.weight[rows], styles.bias[rows] = 0, style[k, rows]
                torch.testing.assert_close(small.mix(*mixed)[k], expected(one)[k])
                assert not torch.allclose(small.mix(*mixed)[k], small(one)[k])


def test_a_decoder_without_blocks_mixes_nothing() -> None:
    points = Generator(latent_dim=2, mapping="none", decoder="mlp", width=4)
    z = torch.zeros(1, 2)
    with pytest.raises(InputError, match=r"generator\.decoder 'mlp' has no blocks whose styles can be mixed"):
        points.mix(z, z, z)


def test_sample_k_depends_on_seed_and_k_alone(small: Generator) -> None:
    many = small.sample(37, seed=5)
    assert many.shape == (37, 3, 8, 8)
    assert many.dtype == torch.uint8
    for k in (0, 15, 16, 36):
        assert torch.equal(small.sample(1, seed=5, start=k)[0], many[k])
    assert torch.equal(small.sample(20, seed=5, start=10), many[10:30])
    assert not torch.equal(small.sample(37, seed=6), many)


def test_sampling_none_is_refused(small: Generator) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        small.sample(0)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 5))
def test_latents_do_not_depend_on_how_they_are_cut(start: int, count: int, dim: int) -> None:
    whole = latent_codes(0, 400, dim, seed=3)
    assert torch.equal(latent_codes(start, start + count, dim, seed=3), whole[start : start + count])
    numbers = torch.arange(start, start + count).flip(0).repeat(2)
    assert torch.equal(latent_codes_at(numbers, dim, seed=3), whole[numbers])


def test_latents_are_standard_normal_and_streams_independent() -> None:
    codes = torch.stack([latent_codes(0, 2000, 16, seed=1, stream=s) for s in range(3)]).flatten(1)
    assert codes.mean(1).abs().max() < 0.03
    assert (codes.std(1) - 1).abs().max() < 0.03
    assert (torch.corrcoef(codes) - torch.eye(3)).abs().max() < 0.03


def test_saving_and_loading_keep_the_samples(small: Generator, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "model")
    loaded = Generator.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.sample(4), small.sample(4))
    assert not loaded.training
    assert json.loads((tmp_path / "model" / "config.json").read_text())["blocks"] == SMALL["blocks"]
    assert "imletriton" in (tmp_path / "model" / "README.md").read_text()


def test_a_checkpoint_describes_its_generator_with_every_default(tmp_path: Path) -> None:
    Generator(latent_dim=2, mapping="none", decoder="mlp").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"latent_dim": 2, "mapping": "none", "decoder": "mlp", "width": 384}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"widht": 8}, "generator.widht is not a key; did you mean 'width'?"),
        ({"width": 0}, "generator.width = 0"),
        ({"decoder": "mlp", "blocks": "4x1"}, "generator.blocks is not a key of decoder 'mlp': it belongs to 'vdvae'."),
        ({"mapping": "recursive"}, "generator.mapping 'recursive' is not known: choose one of mlp, none."),
        ({"blocks": "8m4"}, "generator.blocks: the first item is '8m4'"),
        ({"width": 10**400}, "0000000: input should be less than or equal to 65536."),
        (
            {"mapping_layers": 2**32},
            "generator.mapping_layers = 4294967296: input should be less",
        ),
        ({"latent_dim": 10**12}, "latent_dim = 1000000000000: it must be a whole number from 1 to 1048576."),
        ({"latent_dim": "2"}, "latent_dim = '2': it must be a whole number from"),
        ({"latent_dim": 10**6}, "A generator of 8,021,518,162,051 weights takes"),
    ],
)
def test_wrong_parameters_are_named(keys: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Generator(**{"latent_dim": 2} | keys)
    assert words in str(caught.value)


def test_a_config_that_asks_for_more_than_the_weights_is_refused_at_once(small: Generator, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"width": 30000}))
    began = time.process_time()
    with pytest.raises(InputError, match=r"config\.json does not describe .* weights, more than .* can hold\.$"):
        Generator.from_pretrained(tmp_path)
    assert time.process_time() - began < 2


def test_samples_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are the same at every resolution, so those of a small picture make one that is too large."""
    large = Generator(**SMALL | {"blocks": "4x1,8192m4"})
    monkeypatch.setattr("imletriton.generator.model.free_memory", lambda: 2**30)
    with pytest.raises(InputError, match=r"A batch of 16 samples takes about .* GiB of memory, and 1\.0 GiB are free"):
        large.sample(1)


def test_mappings_and_decoders_compile_whole() -> None:
    """Without a break in the graph."""
    torch._dynamo.reset()
    for generator in (Generator(**SMALL), Generator(latent_dim=6, mapping="none", decoder="mlp", width=4)):
        z = torch.randn(2, 6)
        compiled = torch.compile(generator, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(z), generator(z))


def test_a_run_loads_its_newest_checkpoint(small: Generator, tmp_path: Path) -> None:
    for step, generator in ((10, Generator(**SMALL)), (200, small)):
        save_checkpoint(tmp_path, step, generator, {}, {"step": step, "data": ""}, keep=2)
    Generator(**SMALL).save_pretrained(tmp_path / "checkpoints" / ".000300")  # unfinished
    assert torch.equal(Generator.from_pretrained(tmp_path).sample(2), small.sample(2))


def test_damaged_files_are_named(small: Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        Generator.from_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        Generator.from_pretrained(tmp_path)
    save_file({name: weight.fill_(torch.nan) for name, weight in load(whole).items()}, weights)
    with pytest.raises(InputError, match=r"model\.safetensors holds weights that are NaN"):
        Generator.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps(SMALL | {"width": 16}))
    with pytest.raises(InputError, match="another architecture"):
        Generator.from_pretrained(tmp_path)
    config.write_text(json.dumps(SMALL | {"mapping": "recursive"}))
    with pytest.raises(InputError, match=r"config\.json does not describe"):
        Generator.from_pretrained(tmp_path)
    for text in (b"{", b"\xff", b"null", b"[]", b"[" * 10**5, b'{"width":' + b"9" * 5000 + b"}"):
        config.write_bytes(text)
        with pytest.raises(InputError, match=r"config\.json is damaged"):
            Generator.from_pretrained(tmp_path)
    for keys in ({"width": "wide"}, {"latent_dim": "deep"}, {"latent_dim": -1}, {"mapping": None}, {"blocks": [1]}):
        config.write_text(json.dumps(SMALL | keys))
        with pytest.raises(InputError, match=r"config\.json does not describe a generator: [^\n]+[^.]\.$"):
            Generator.from_pretrained(tmp_path)


def test_interpolation_keeps_to_the_sphere() -> None:
    a, b = torch.randn(2, 64)
    b *= a.norm() / b.norm()
    row = slerp(a, b, torch.linspace(0, 1, 9))
    torch.testing.assert_close(row.norm(dim=1), a.norm().expand(9))
    torch.testing.assert_close(row[[0, -1]], torch.stack([a, b]))
    steps = (row[1:] - row[:-1]).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(8))
    torch.testing.assert_close(slerp(a, a, torch.rand(3)), a.expand(3, -1))
    both = slerp(torch.stack([a, a]), torch.stack([b, a]), torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(both, torch.stack([row[2], a]))
    torch.testing.assert_close(slerp(a, b, 0.25), row[2])
    assert slerp(a, -a, torch.linspace(0, 1, 5)).isfinite().all()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_loop_of_latents_passes_its_keys_smoothly(count: int) -> None:
    keys = torch.randn(count, 3, 64)
    for k in range(count):
        torch.testing.assert_close(latent_loop(keys, k / count), keys[k])
    torch.testing.assert_close(latent_loop(keys, 1.0), keys[0])
    path = torch.stack([latent_loop(keys, k / 1000) for k in range(1000)])
    assert (path.norm(dim=2) > 0.9 * keys.norm(dim=2).min()).all()
    assert (path.norm(dim=2) < 1.1 * keys.norm(dim=2).max()).all()
    steps = path.roll(-1, 0) - path
    turns = (steps.roll(-1, 0) - steps).norm(dim=2)
    assert turns.max() < 0.1 * steps.norm(dim=2).mean()  # where speed jumped, this would be about 1
