"""Examples made into what a model takes: token ids once, images resized once where they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from eckart.data.images import decode
from eckart.data.splits import Split
from eckart.errors import InputError, first_line
from eckart.tasks.pretrained import Checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "*.bpe.model",
)
IMAGES_IN_MEMORY = 2**30  # bytes of resized pixels kept per split; a larger split is resized as it is read
PIECE = 2**18  # characters tokenised at a time
IMAGE_SIZE = 224  # of folders of photographs, for a model that names none


class Rows(Dataset[dict[str, Any]]):
    """Encoded examples in memory."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def load_tokenizer(checkpoint: Checkpoint, model: Any, *, pad: bool = False) -> Any:
    """The tokenizer of a checkpoint, with a token to pad with where the task needs one.

    Raises:
        InputError: no tokenizer, one with more tokens than the model has, or none to pad with.
    """
    from transformers import AutoTokenizer

    directory, name = checkpoint.directory, checkpoint.name
    if not any(found for pattern in TOKENIZER_FILES for found in directory.glob(pattern)):
        raise InputError(
            f"--model {name} has no tokenizer ({', '.join(TOKENIZER_FILES)}): save one beside it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the Rust reader raises bare Exception
        raise InputError(f"--model {name}: its tokenizer cannot be read: {first_line(error)}") from None
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"--model {name}: its tokenizer has {len(tokenizer)} tokens and the model {rows}: not of one another"
        )
    if pad:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise InputError(f"--model {name}: its tokenizer has no token to pad with (pad, eos or unk)")
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def opening(tokenizer: Any) -> list[int]:
    """The token that a tokenizer begins a text with; none where it begins with the text."""
    first = tokenizer.bos_token_id
    return [first] if first is not None and tokenizer("a")["input_ids"][0] == first else []


def check_length(max_length: int, tokenizer: Any, config: Any) -> None:
    """Refuse a length that the model has no positions for."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    most = min(positions if positions > 0 else tokenizer.model_max_length, tokenizer.model_max_length)
    if not 2 <= max_length <= most:
        raise InputError(f"--max-length {max_length}: this model takes 2 to {most} tokens")


def tokenised(split: Split, tokenizer: Any, max_length: int) -> Rows:
    """Texts or pairs as token ids, cut to ``max_length``, not yet padded."""
    pairs = isinstance(split.inputs[0], tuple)
    texts = [list(column) for column in zip(*split.inputs, strict=True)] if pairs else [list(split.inputs)]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    names = list(encoded)
    labels = split.labels or []
    return Rows([{**{n: encoded[n][i] for n in names}, "labels": label} for i, label in enumerate(labels)])


def token_blocks(split: Split, tokenizer: Any, length: int, where: str) -> Int[Tensor, "n length"]:
    """All texts joined (by the end-of-text token, if there is one) and cut into blocks; the last part block is dropped.

    Args:
        split: the texts.
        tokenizer: of the model.
        length: tokens of a block.
        where: the texts are from, for messages.

    Raises:
        InputError: fewer tokens than one block.
    """
    tokens: list[int] = []
    for text in split.inputs:
        encoded = tokenizer(_pieces(text), add_special_tokens=False, return_attention_mask=False)
        tokens += [token for piece in encoded["input_ids"] for token in piece]
        if len(split) > 1 and tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
    blocks = len(tokens) // length
    if not blocks:
        raise InputError(
            f"{where} has {len(tokens)} tokens, less than one block of {length}; "
            "give more text or a smaller --max-length"
        )
    return torch.tensor(tokens[: blocks * length]).view(blocks, length)


def _pieces(text: str) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        end = text.rfind("\n", start, start + PIECE) + 1 if start + PIECE < len(text) else len(text)
        end = end or start + PIECE
        pieces.append(text[start:end])
        start = end
    return pieces


class Images(Dataset[dict[str, Any]]):
    """Images as bytes ``c h w`` of the model's size: resized once if they fit in `IMAGES_IN_MEMORY`, else when read."""

    def __init__(self, split: Split, prepare: Callable[[Any], UInt8[Tensor, "c h w"]]) -> None:
        self.sources, self.labels, self.prepare = split.inputs, split.labels or [], prepare
        first = prepare(self.sources[0])
        self.pixels = None
        if first.numel() * len(self.sources) <= IMAGES_IN_MEMORY:
            pixels = [prepare(source) for source in self.sources]
            sizes = sorted({f"{p.shape[2]}×{p.shape[1]}" for p in pixels})
            if len(sizes) > 1:
                raise InputError(
                    f"--model: its image processor makes images of {' and of '.join(sizes[:2])}: give images of one "
                    "shape, or a processor that cuts them to one size"
                )
            self.pixels = torch.stack(pixels)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.prepare(self.sources[index]) if self.pixels is None else self.pixels[index]
        return {"pixel_values": pixels, "labels": self.labels[index]}


@dataclass(frozen=True)
class ImageRecipe:
    """How a model wants its images: the resizing of its image processor, then the processor's scale, mean and std."""

    processor: Any
    channels: int

    def prepare(self, image: Any) -> UInt8[Tensor, "c h w"]:
        """Decode and resize; still bytes."""
        batch = self.processor(decode(image), do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels: Tensor = batch["pixel_values"][0]
        if self.channels == 1:
            pixels = pixels.float().mean(0, keepdim=True)
        return pixels.round().to(torch.uint8) if pixels.is_floating_point() else pixels.to(torch.uint8)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collator: stack and normalise."""
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {
            "pixel_values": self.normalise(pixels),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def normalise(self, pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """(x · scale − mean) / std, per channel."""
        values = pixels.float()
        if self.processor.do_rescale:
            values = values * self.processor.rescale_factor
        if self.processor.do_normalize:
            mean, std = (
                torch.tensor(numbers, dtype=torch.float32)[: self.channels, None, None]
                for numbers in (self.processor.image_mean, self.processor.image_std)
            )
            values = (values - mean) / std
        return values


def image_recipe(checkpoint: Checkpoint, config: Any, example: Any) -> ImageRecipe:
    """The image processor of a checkpoint; where there is none, the size that its config names (or the array's own
    size, or 224 for encoded images), and values from −1 to 1.

    Raises:
        InputError: a processor that cannot be read, or a model for neither 1 nor 3 channels.
    """
    from transformers import AutoImageProcessor, ViTImageProcessor

    directory, name = checkpoint.directory, checkpoint.name
    channels = getattr(config, "num_channels", 3)
    if channels not in (1, 3):
        raise InputError(f"--model {name} takes {channels} channels; images have 1 or 3")
    if (directory / "preprocessor_config.json").is_file():
        try:
            return ImageRecipe(AutoImageProcessor.from_pretrained(directory, local_files_only=True), channels)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(
                f"--model {name}: preprocessor_config.json cannot be used: {first_line(error)}"
            ) from None
    size = getattr(config, "image_size", None) or (
        example.shape[:2] if isinstance(example, np.ndarray) else IMAGE_SIZE
    )
    height, width = (size, size) if isinstance(size, int) else size
    return ImageRecipe(ViTImageProcessor(size={"height": height, "width": width}), channels)
