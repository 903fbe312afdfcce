"""Instructions and conversations: the loss is on what the assistant says, and a model may be asked to answer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from eckart.data.chat import Conversation
from eckart.data.read import CHAT, Data
from eckart.data.splits import PARTS, Split
from eckart.errors import InputError, first_line
from eckart.tasks.choosing import imported
from eckart.tasks.encode import Rows, check_length, load_tokenizer
from eckart.tasks.kinds.kind import Encoded, Examples, Kind, Shrink
from eckart.tasks.kinds.language import unigram
from eckart.tasks.metrics import Metric, Outcomes, by_name, column, ratio_of_sums
from eckart.tasks.options import Words
from eckart.tasks.pretrained import Checkpoint

IGNORED = -100
"""The label of a token that no loss is on."""
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""The template of a model that has none: each message on a line, an answer ended by the end-of-text token."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Conversations(Rows):
    """Encoded conversations, with what a model is asked and what it should answer."""

    def __init__(self, rows: Sequence[dict[str, Any]], prompts: list[list[int]], answers: list[str]) -> None:
        super().__init__(rows)
        self.prompts, self.answers = prompts, answers


class Chat(Kind):
    """An outcome is the bits of the answers, how many tokens those are, and whether the answer that the model gives is
    right (NaN where it was not asked)."""

    name = "chat"
    reads = (None, CHAT)
    metrics = by_name(
        Metric("bits_per_answer_token", each=ratio_of_sums, greater_is_better=False),
        Metric("exact_match", each=column(2)),
    )

    def __init__(self, data: Data, words: Words) -> None:
        super().__init__(data, words)
        self.extract_name = words.extract or _extractor(data.splits["train"])
        self.extract = extractor(self.extract_name)
        self.tokenizer: Any = None
        self.answer_tokens = 0

    def outputs(self) -> list[str] | None:
        """The model's own tokens."""
        return None

    def encode(self, checkpoint: Checkpoint, model: Any, max_length: int, shrink: Shrink) -> Encoded:
        """Every conversation by the model's chat template, none packed with another, padded by the batch."""
        tokenizer = load_tokenizer(checkpoint, model, pad=True)
        check_length(max_length, tokenizer, model.config)
        notes = self.data.notes
        self.write_by(tokenizer)
        notes.append("conversations are not packed: a batch holds each by itself, padded")
        self.tokenizer = tokenizer
        train, validation, test = (self._encoded(self.data.splits[part], part, max_length) for part in PARTS)
        self.answer_tokens = max(sum(label != IGNORED for label in row["labels"]) for row in train.rows)
        if self.words.generate:
            asked = min(self.words.generate, len(test))
            notes.append(
                f"exact match: greedy answers of at most {self.answer_tokens} tokens to {asked} test examples, "
                f"compared by {self.extract_name}"
            )
        return Encoded(train, validation, test, Padded(tokenizer.pad_token_id), tokenizer)

    def write_by(self, tokenizer: Any) -> None:
        """See that the tokenizer has a template to write conversations by."""
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN
            self.data.notes.append(
                "the tokenizer has no chat template: each message stands on a line, answers end with its eos"
            )

    def _encoded(self, split: Split, part: str, max_length: int) -> Conversations:
        rows, prompts, answers, cut = [], [], [], 0
        for conversation in split.inputs:
            ids, labels = encode_conversation(conversation, self.tokenizer)
            cut += len(ids) > max_length
            ids, labels = ids[:max_length], labels[:max_length]
            if all(label == IGNORED for label in labels[1:]):
                continue
            rows.append({"input_ids": ids, "labels": labels})
            text = render(conversation[:-1], self.tokenizer, prompt=True)
            prompts.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            answers.append(conversation[-1]["content"])
        if not rows:
            raise InputError(
                f"--max-length {max_length}: no answer of the {part} split begins within so many tokens; give more"
            )
        if cut:
            gone = len(split) - len(rows)
            self.data.notes.append(
                f"{part}: {cut:,} of {len(split):,} conversations are longer than --max-length {max_length} and cut"
                + (f", {gone:,} of them left out, since nothing of the answer is within" if gone else "")
            )
        return Conversations(rows, prompts, answers)

    def outcomes(self, outputs: Any, batch: Mapping[str, Any]) -> Outcomes:
        """Bits and tokens of each conversation's answers; NaN bits where the logits are not finite."""
        told, tokens = answer_bits(outputs.logits, batch["labels"])
        return np.stack([told, tokens, np.full(len(told), math.nan)], axis=1)

    def trivial(self, train: Examples, test: Examples, model: Any) -> tuple[str, Outcomes]:
        """Every token of the answers by its frequency, and the answer that is most frequent in the train split."""
        known, asked = ([_answer(row) for row in split.rows] for split in (train, test))  # type: ignore[attr-defined]
        given = [self.extract(answer) for answer in train.answers]  # type: ignore[attr-defined]
        most = max(dict.fromkeys(given), key=given.count)
        hits = [float(most is not None and self.extract(answer) == most) for answer in test.answers]  # type: ignore[attr-defined]
        told = unigram(known, asked, model.config.vocab_size)[:, :2]
        return "unigram", np.concatenate([told, np.array(hits)[:, None]], axis=1)

    def example(self, train: Examples, letters: int) -> str:
        """As the template writes it; what the loss is on stands in double brackets."""
        row = train[0]
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        told = ""
        for trained, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
            text = _short(self.tokenizer.decode([token for token, _ in group]), 4 * letters)
            told += f"[[{text}]]" if trained else text
        return told

    def _same(self, given: str, answer: str) -> float:
        """1 where the two are the same to the extractor, and it finds something in them."""
        wanted = self.extract(answer)
        return float(wanted is not None and self.extract(given) == wanted)

    @torch.inference_mode()
    def answered(self, model: Any, split: Conversations, count: int, batch_size: int) -> np.ndarray:
        """1 where the model's greedy answer is the right one by the extractor, of the first ``count`` examples.

        Args:
            model: a language model, or one with adapters.
            split: what is asked.
            count: of the examples.
            batch_size: examples that are answered together; those of like length are.
        """
        from transformers import GenerationConfig

        device, training = next(model.parameters()).device, model.training
        model.eval()
        plan: Any = GenerationConfig(
            max_new_tokens=self.answer_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
        )
        order = sorted(range(count), key=lambda i: len(split.prompts[i]))
        right = np.zeros(count)
        for start in range(0, count, batch_size):
            places = order[start : start + batch_size]
            batch = left_padded([split.prompts[i] for i in places], self.tokenizer.pad_token_id)
            inputs = {name: value.to(device) for name, value in batch.items()}
            given = model.generate(**inputs, generation_config=plan)[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(given, skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                right[place] = self._same(text, split.answers[place])
        model.train(training)
        return right


def answer_bits(
    logits: Float[Tensor, "n length vocabulary"], labels: Int[Tensor, "n length"]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each text the bits −Σ log₂ p(token | tokens before it) of those that have a label, and how many those are."""
    labels = labels[:, 1:]
    asked = labels != IGNORED
    told = logits.detach()[:, :-1][asked].float()
    nats = torch.zeros(labels.shape, dtype=torch.float64, device=logits.device)
    nats[asked] = F.cross_entropy(told, labels[asked], reduction="none").double()
    return nats.sum(1).cpu().numpy() / math.log(2), asked.sum(1).cpu().numpy()


@dataclass(frozen=True)
class Padded:
    """Collator: conversations padded on the right to the longest of the batch."""

    pad: int

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[i, :size] = torch.tensor(row["input_ids"])
            labels[i, :size] = torch.tensor(row["labels"])
            mask[i, :size] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Prompts that end together, so that what is generated begins at one place."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, longest - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def render(conversation: Conversation, tokenizer: Any, *, prompt: bool = False) -> str:
    """A conversation as the model's template writes it; with ``prompt`` up to where the assistant speaks next.

    Raises:
        InputError: a template that does not take such a conversation.
    """
    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # Jinja's, and what templates raise
        raise InputError(
            f"--kind chat: the model's chat template cannot write the data: {first_line(error)}"
        ) from None
    return text


def encode_conversation(conversation: Conversation, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels: the tokens that the assistant says, up to its end token, else `IGNORED`.

    Raises:
        InputError: a template that writes a conversation otherwise when it goes on.
    """
    text, spans = render(conversation, tokenizer), []
    for place, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        before = render(conversation[:place], tokenizer, prompt=True)
        whole = render(conversation[: place + 1], tokenizer)
        if not whole.startswith(before) or not text.startswith(whole):
            raise InputError(
                "--kind chat: the model's chat template writes a message otherwise when others follow, so that an "
                "answer cannot be told from the rest; give conversations of one answer, or another model"
            )
        end = whole.rfind(tokenizer.eos_token, len(before)) if tokenizer.eos_token else -1
        spans.append((len(before), len(whole) if end < 0 else end + len(tokenizer.eos_token)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [
        token if any(start <= first and last <= end for start, end in spans) and last > first else IGNORED
        for token, (first, last) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return ids, labels


def _answer(row: Mapping[str, Any]) -> np.ndarray:
    labels = np.asarray(row["labels"])[1:]
    found: np.ndarray = labels[labels != IGNORED]
    return found


def _short(text: str, letters: int) -> str:
    shown = text.replace("\n", "⏎")
    return shown if len(shown) <= letters else f"{shown[: letters // 2]}…{shown[-letters // 2 :]}"


def _extractor(split: Split) -> str:
    """ "last-number" where every answer ends with a number, as those of GSM8K do, else "text"."""
    answers = (conversation[-1]["content"].rstrip(" .") for conversation in split.inputs)
    return "last-number" if all(re.search(r"\d$", answer) for answer in answers) else "text"


def extractor(name: str) -> Callable[[str], Any]:
    """What is compared of an answer.

    Args:
        name: "last-number", "text" (blanks and case apart), or ``module:function``.

    Raises:
        InputError: a function that cannot be had.
    """
    if ":" in name:
        return imported(name, "--extract")
    return last_number if name == "last-number" else lambda text: " ".join(text.split()).casefold()


def last_number(text: str) -> float | None:
    """The last number of a text, commas between thousands left out; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
