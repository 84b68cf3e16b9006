# SPDX-License-Identifier: Apache-2.0
import torch

from vla import randomness
from vla.recipes import Recipe
from vla.train.augment import augment, augmented


def keys(*numbers):
    return randomness.fold(3, torch.tensor(numbers))


def test_a_picture_is_moved_whole_and_by_no_more_than_asked():
    image = torch.randint(1, 255, (64, 12, 10, 3), dtype=torch.uint8)
    moved = augment(image, keys(*range(64)), 3, 0.0, "front")
    found = set()
    for before, after in zip(image, moved, strict=True):
        padded = torch.nn.functional.pad(before.permute(2, 0, 1).float(), (3, 3, 3, 3), mode="replicate")
        fits = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if torch.equal(padded[:, y : y + 12, x : x + 10], after.permute(2, 0, 1).float())
        ]
        assert len(fits) == 1
        found.update(fits)
    assert len(found) > 25 and {0, 6} <= {y for y, _ in found} and {0, 6} <= {x for _, x in found}


def test_a_sample_is_changed_by_its_own_key_alone():
    image = torch.randint(0, 255, (3, 8, 8, 3), dtype=torch.uint8)
    together = augment(image, keys(5, 6, 7), 2, 0.2, "front")
    assert torch.equal(together[1:2], augment(image[1:2], keys(6), 2, 0.2, "front"))
    assert not torch.equal(together, augment(image, keys(5, 6, 7), 2, 0.2, "wrist"))
    assert torch.equal(image, augment(image, keys(5, 6, 7), 0, 0.0, "front"))


def test_light_scales_and_offsets_a_whole_picture():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(32, 16, 16, 3)
    lit = augment(image, keys(*range(32)), 0, 0.2, "front").to(torch.float32)
    middle = lit[:, 7, 15, 0]
    assert middle.min() < 112 and middle.max() > 143  # up to a tenth of the range up and down
    assert (lit[:, 7, 15] - 127.5).abs().max() <= 27
    assert ((lit.flatten(1, 2)[:, 1:] - lit.flatten(1, 2)[:, :-1]) >= 0).all()  # darker stays darker


def test_all_that_a_sample_sees_is_changed_in_the_same_way():
    """Moments, goal and future: what has moved between them is what moved in the world."""
    image = torch.randint(0, 255, (8, 8, 8, 3), dtype=torch.uint8)
    recipe, key_B = Recipe(shift=2, light=0.2), keys(*range(8))
    now = augmented({"front": image.unsqueeze(1).expand(-1, 3, -1, -1, -1)}, key_B, recipe)["front"]
    later = augmented({"front": image}, key_B, recipe)["front"]
    assert now.shape == (8, 3, 8, 8, 3) and not torch.equal(later, image)
    assert all(torch.equal(now[:, moment], later) for moment in range(3))
    assert augmented({"front": image}, key_B, Recipe())["front"] is image
