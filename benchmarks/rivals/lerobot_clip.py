# SPDX-License-Identifier: Apache-2.0
"""A small CLIP from scratch, and a tokenizer of the dataset's own sentences, in a folder that transformers can load.

LeRobot's multi_task_dit names its encoders and loads them with `from_pretrained`; a name may be a folder. So it needs
no hub, and starts from drawn weights like everybody else.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from benchmarks.rivals.lerobot_configs import CLIP, PATCH

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"
NAME = "clip"
"""The policy refuses a name without "clip" in it."""


def write_clip(folder: Path, sentences: Sequence[str], image_size: int, seed: int) -> int:
    """Write model and tokenizer into `folder`. Returns the longest sentence's length in tokens, marks included.

    ValueError unless the picture is a whole number of patches.
    """
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    if image_size % PATCH:
        raise ValueError(f"expected pictures of a multiple of {PATCH} px for multi_task_dit, got {image_size}")
    tokenizer = word_tokenizer(sentences)
    longest = max(len(tokenizer.encode(sentence).ids) for sentence in sentences)
    marks = {"pad_token": PAD, "bos_token": START, "eos_token": END, "unk_token": UNKNOWN}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, **marks).save_pretrained(folder)
    ids = {f"{name}_token_id": tokenizer.token_to_id(marks[f"{name}_token"]) for name in ("pad", "bos", "eos")}
    text = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": longest, **ids}
    vision = {"image_size": image_size, "patch_size": PATCH}
    width = CLIP["vision"]["hidden_size"]
    config = CLIPConfig(
        text_config={**CLIP["text"], **text, "projection_dim": width},
        vision_config={**CLIP["vision"], **vision, "projection_dim": width},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    return longest


def word_tokenizer(sentences: Sequence[str]) -> Tokenizer:
    """Words to numbers, between a start and an end mark."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # transformers reads a sentence off its largest number if the end mark is number 2, so it must be another.
    marks = [PAD, START, UNKNOWN, END]
    tokenizer.train_from_iterator(sorted(set(sentences)), trainers.WordLevelTrainer(special_tokens=marks))
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return tokenizer
