# SPDX-License-Identifier: Apache-2.0
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from vla.envs.tabletop.scene import COLOURS
from vla.tokenizers.image import ImageTokenizer
from vla.train.image_probe import _half, colour_of, keep_colours, learn_to_read, perplexity
from vla.train.image_tokenizer import TokenizerConfig, pixel_error, train_tokenizer


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory):
    """Ten episodes of the tabletop, seen by the camera that stands still and by the one on the hand."""
    from vla.data.record import RecordConfig, record

    folder = tmp_path_factory.mktemp("pictures") / "dataset"
    record(
        RecordConfig(out=folder, suite="demo", episodes=10, shard_episodes=10, cameras=("front", "wrist"), workers=1)
    )
    return folder


def vla(*arguments, cache):
    command = [sys.executable, "-m", "vla.cli", "train-tokenizer", *map(str, arguments)]
    environment = {**os.environ, "VLA_CACHE": str(cache), "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.render
def test_the_command_leaves_a_tokenizer_its_figures_and_pictures(two_cameras, tmp_path):
    out = tmp_path / "tokenizer"
    arguments = ("image", "--dataset", two_cameras, "--out", out, "--steps", 60, "--batch-size", 8, "--threads", 1)
    done = vla(*arguments, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"image_tokenizer.json", "image_tokenizer.safetensors", "training.json", "pictures.png", "checksums.json"}
    assert {p.name for p in out.iterdir()} == names
    assert str(tmp_path) not in (out / "training.json").read_text().replace(str(out), "")
    results = json.loads((out / "training.json").read_text())["results"]
    assert results["steps"] == 60 and results["positions"] == 64
    assert "foreground_psnr_db" in done.stdout and "colours: iou_mean" in done.stdout
    assert all(1 <= p <= n for p, n in zip(results["perplexity"], (8, 5, 5, 5), strict=True))
    assert 0 < results["usage"] <= 1 and math.isfinite(results["state"]["ratio"])

    tokenizer = ImageTokenizer.load(out)
    assert tokenizer.cameras == ("front", "wrist")
    assert "'front' stands still" in done.stdout
    assert results["foreground_psnr_db"] > results["foreground_psnr_background_db"] + 0.2

    refused = vla(*arguments, cache=tmp_path)
    assert refused.returncode == 2 and "exists; give another --out, or --overwrite" in refused.stderr
    wrong = vla("image", "--dataset", two_cameras, "--out", tmp_path / "b", "--image-size", 100, cache=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: expected an image_size of 64, 72")


@pytest.mark.render
def test_the_same_seed_gives_the_same_weights(two_cameras, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_CACHE", str(tmp_path))
    for name in ("a", "b"):
        settings = {"steps": 3, "batch_size": 4, "width": 16, "threads": torch.get_num_threads()}
        train_tokenizer(TokenizerConfig("image", str(two_cameras), tmp_path / name, **settings))
    a, b = ((tmp_path / name / "image_tokenizer.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_block_that_is_not_there_costs_what_a_lost_one_costs():
    background = torch.full((16, 16, 3), 100.0)
    block = background.clone()
    block[3:6, 3:6] = torch.tensor([220.0, 20.0, 20.0])
    lost = pixel_error(background[None], block[None], background, 20.0)
    invented = pixel_error(block[None], background[None], background, 20.0)
    assert lost == pytest.approx(invented) and lost > 5 * pixel_error(background[None], block[None], background, 1.0)


def scene(shift=0, colours=("red", "cyan")):
    """Two squares of six pixels on a grey table; `shift`: how far right."""
    image = torch.full((1, 64, 64, 3), 140, dtype=torch.uint8)
    for place, name in ((10, colours[0]), (40, colours[1])):
        rgb = torch.tensor([int(255 * c) for c in COLOURS[name]], dtype=torch.uint8)
        image[0, 20:26, place + shift : place + shift + 6] = rgb
    return image


def test_colours_are_told_by_hue_in_light_and_shade():
    for light in (0.6, 1.0):
        colours = torch.tensor(list(COLOURS.values())) * 255 * light
        assert colour_of(colours.to(torch.uint8).view(1, 1, -1, 3)).flatten().tolist() == [*range(len(COLOURS))]
    greys = torch.arange(0, 256, dtype=torch.uint8).view(1, 1, -1, 1).expand(-1, -1, -1, 3)
    assert bool((colour_of(greys) == -1).all())


def test_what_became_of_colours_is_counted():
    original = {"front": scene()}
    same = keep_colours(original, {"front": scene()})
    assert (same["iou_mean"], same["right"], same["lost"], same["moved_px"]) == (1.0, 1.0, 0.0, 0.0)
    moved = keep_colours(original, {"front": scene(shift=2)})
    assert moved["moved_px"] == pytest.approx(2.0) and moved["iou"]["red"] == pytest.approx(4 / 8) and not moved["lost"]
    swapped = keep_colours(original, {"front": scene(colours=("cyan", "red"))})
    assert swapped["right"] == 0.0 and swapped["iou_mean"] == 0.0
    lost = keep_colours(original, {"front": torch.full((1, 64, 64, 3), 140, dtype=torch.uint8)})
    assert lost["lost"] == 1.0 and math.isnan(lost["moved_px"])


def test_where_a_square_is_can_be_read_and_perplexity_counts_values():
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 56, (400, 2), generator=generator)
    images = torch.full((400, 64, 64, 3), 140, dtype=torch.uint8)
    for image, (row, column) in zip(images, places.tolist(), strict=True):
        image[row : row + 8, column : column + 8] = 20
    state = (places - 28.0) / 16
    read = learn_to_read({"front": _half(images[:360])}, state[:360])
    assert (read({"front": images[360:]}) - state[360:]).abs().mean() < 0.1
    assert perplexity(torch.tensor([0, 1, 2, 3])) == pytest.approx(4.0)
    assert perplexity(torch.zeros(9, dtype=torch.int64)) == pytest.approx(1.0)
