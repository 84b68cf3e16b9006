# SPDX-License-Identifier: Apache-2.0
import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ

from vla.tokenizers.image import GREY, ImageTokenizer, bound

LEVELS = [(8, 5, 5, 5), (3, 4), (7, 16, 6), (8, 8, 8)]


@functools.cache
def made(size=64, levels=(8, 5, 5, 5), cameras=()):
    """A network whose codes are not all the same: its weights are larger than those training starts from."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(size, levels, width=16, cameras=cameras).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.mul_(2.0)
    return tokenizer


def pictures(count=4, size=64, seed=0):
    return torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_digits_are_those_of_the_library(levels):
    fsq = FSQ(list(levels))
    latent_BND = 3 * torch.randn(50, 64, len(levels), generator=torch.Generator().manual_seed(1))
    latent_BND[0] = 0.0  # the middle of a level, and as far as float32 goes
    latent_BND[1], latent_BND[2] = 1e30, -1e30
    levels_D = torch.tensor(levels, dtype=torch.int32)
    ours = bound(latent_BND, levels_D).round().long() + levels_D // 2
    code_BND, index_BN = fsq(latent_BND)
    assert torch.equal(ours, fsq.indices_to_level_indices(index_BN).long())
    assert torch.allclose((ours - levels_D // 2) / (levels_D // 2), code_BND, atol=1e-6)


def test_encode_and_decode_say_what_training_saw():
    """The library quantises in training; digits and picture at deployment are the same as with it."""
    tokenizer, image, fsq = made(), pictures(), FSQ([8, 5, 5, 5])
    trained = tokenizer(image, quantise=lambda z: fsq(z)[0])
    digits = tokenizer.encode(image)
    index = fsq(tokenizer._latent(image, None))[1]
    assert torch.equal(digits, fsq.indices_to_level_indices(index).long())
    assert len(digits.flatten(0, 1).unique(dim=0)) > 20
    assert (tokenizer.decode(digits).float() - trained.detach().clamp(0, 255)).abs().max() < 0.51
    trained.square().mean().backward()
    assert all(p.grad is not None for p in tokenizer.encoder.parameters())
    tokenizer.zero_grad()


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([64, 72, 96, 128]),
    levels=st.sampled_from(LEVELS),
    seed=st.integers(0, 2**31),
    wild=st.booleans(),
)
def test_every_string_of_digits_decodes(size, levels, seed, wild):
    tokenizer = made(size, levels)
    generator = torch.Generator().manual_seed(seed)
    digits = torch.stack([torch.randint(0, n, (2, tokenizer.positions), generator=generator) for n in levels], dim=-1)
    image = tokenizer.decode(digits + 1000 if wild else digits)
    assert image.shape == (2, size, size, 3) and image.dtype == torch.uint8
    if wild:  # beyond the radix is the largest one, as in Numerals
        assert torch.equal(image, tokenizer.decode((torch.tensor(levels) - 1).expand_as(digits)))


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from([64, 96, 128]), count=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_every_picture_is_a_string_of_digits(size, count, seed):
    tokenizer = made(size)
    digits = tokenizer.encode(pictures(count, size, seed))
    assert digits.shape == (count, (size // 8) ** 2, 4) and digits.dtype == torch.int64
    assert bool(((digits >= 0) & (digits < torch.tensor(tokenizer.levels))).all())
    index = tokenizer.numerals.to_index(digits)
    assert torch.equal(tokenizer.numerals.to_digits(index), digits)
    assert tokenizer.decode(digits).shape == (count, size, size, 3)


def test_positions_are_places_row_by_row():
    """A change in the middle of a patch changes the code there, and none four patches away."""
    tokenizer, image = made(128), torch.full((1, 128, 128, 3), GREY, dtype=torch.uint8)
    other = image.clone()
    other[0, 2 * 8 : 3 * 8, 13 * 8 : 14 * 8] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    with torch.no_grad():
        moved_N = (tokenizer._latent(image, None) - tokenizer._latent(other, None))[0].abs().amax(-1)
    assert int(moved_N.argmax()) == 2 * 16 + 13


def test_saved_and_loaded_is_bit_for_bit_the_same(tmp_path):
    tokenizer = made(64, (7, 5, 5), ("front", "wrist"))
    tokenizer.fit_background(pictures(1).repeat(9, 1, 1, 1), "wrist")
    tokenizer.save(tmp_path)
    loaded, image = ImageTokenizer.load(tmp_path), pictures(3, seed=5)
    assert {p.name for p in tmp_path.iterdir()} == {"image_tokenizer.json", "image_tokenizer.safetensors"}
    assert (loaded.levels, loaded.cameras, loaded.width) == ((7, 5, 5), ("front", "wrist"), 16)
    for camera in loaded.cameras:
        digits = tokenizer.encode(image, camera)
        assert torch.equal(loaded.encode(image, camera), digits)
        assert torch.equal(loaded.decode(digits, camera), tokenizer.decode(digits, camera))


def test_a_folder_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image tokenizer in"):
        ImageTokenizer.load(tmp_path)
    made().save(tmp_path)
    about = tmp_path / "image_tokenizer.json"
    about.write_text(about.read_text().replace('"width": 16', '"width": 32'))
    with pytest.raises(ValueError, match="damaged"):
        ImageTokenizer.load(tmp_path)
    about.write_text(about.read_text().replace('"version": 2', '"version": 9'))
    with pytest.raises(ValueError, match="version 2"):
        ImageTokenizer.load(tmp_path)


def test_what_a_camera_usually_shows_is_its_background():
    usual = pictures(1, seed=2)
    image = usual.repeat(9, 1, 1, 1)
    for i in range(9):  # a block that is somewhere else in every picture
        image[i, 5:15, 7 * i : 7 * i + 7] = 255
    tokenizer = ImageTokenizer(64, width=16, cameras=("front", "wrist"))
    assert tokenizer.fit_background(image, "front")
    assert torch.equal(tokenizer.background("front"), usual[0])
    assert not tokenizer.fit_background(pictures(9), "wrist")  # a camera that moves
    assert bool((tokenizer.background("wrist") == GREY).all())


def test_backgrounds_are_not_mixed_up():
    shared, one, two = made(), made(cameras=("front",)), made(cameras=("front", "wrist"))
    image = pictures(1)
    assert torch.equal(shared.encode(image, "any"), shared.encode(image))
    assert torch.equal(one.encode(image), one.encode(image, "front"))
    for tokenizer, camera in ((one, "wrist"), (two, None), (two, "side")):
        with pytest.raises(ValueError, match="expected one of the cameras front"):
            tokenizer.encode(image, camera)
        with pytest.raises(ValueError, match="expected one of the cameras front"):
            tokenizer.decode(torch.zeros(1, 64, 4, dtype=torch.int64), camera)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda t: t.encode(pictures(1, 72)), r"\(B, 64, 64, 3\), uint8, got \(1, 72, 72, 3\)"),
        (lambda t: t.encode(pictures(1).float()), "uint8, got .*float32"),
        (lambda t: t.encode(pictures(1).permute(0, 3, 1, 2)), r"got \(1, 3, 64, 64\)"),
        (
            lambda t: t.decode(torch.zeros(1, 64, 3, dtype=torch.int64)),
            r"\(B, 64, 4\), whole numbers, got \(1, 64, 3\)",
        ),
        (lambda t: t.decode(torch.zeros(1, 64, 4)), "whole numbers, got .*float32"),
        (lambda t: ImageTokenizer(100), "64, 72, ... 128 pixels, got 100"),
        (lambda t: ImageTokenizer(56), "got 56"),
        (lambda t: ImageTokenizer(64, (8, 2)), "levels >= 3"),
        (lambda t: ImageTokenizer(64, width=20), "width of 16, 32"),
        (lambda t: ImageTokenizer(64, cameras=("a", "a")), "different names"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act(made())


def test_deployment_does_not_need_the_library():
    program = "import sys, vla.tokenizers.image; print(*{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not set(done.stdout.split()) & {"vector_quantize_pytorch", "einx", "einops", "rich", "tyro"}
