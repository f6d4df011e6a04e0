"""Texts as token ids, and batches of them.

A batch is padded on the right, whatever side the tokenizer pads, and padding is known by its place, never by its id:
an end token at the end of a text counts although it is the padding token too, and what a sample is judged by depends
on no other sample of its batch.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer

from .caches import mapped
from .classes import judges_samples
from .configs import base_of, config_of, is_adapter, model_class, position_limit, reads_forward_only

logger = logging.getLogger(__name__)
USUAL_LENGTH = 512


def tokenizer_of(model: str) -> Any:
    """A model's tokenizer, with a padding token: its own, the one that the config names, or the end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError):
        if not is_adapter(model):
            raise
        tokenizer = AutoTokenizer.from_pretrained(base_of(model))
    if tokenizer.pad_token is None:
        number = getattr(config_of(model).get_text_config(), "pad_token_id", None)
        known = number is not None and 0 <= number < len(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number) if known else tokenizer.eos_token
    return tokenizer


def with_padding_id(model: Any, name: str) -> Any:
    """The model with its tokenizer's padding token in its config, if that names none: a decoder that classifies
    sequences finds the last token of a text by it. (Set here, not before the model is made: embeddings would hold the
    padding token still.)"""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base, "config", None)
    if config is None or not judges_samples(type(base)) or not reads_forward_only(config):
        return model
    if getattr(config.get_text_config(), "pad_token_id", None) is None:
        try:
            config.get_text_config().pad_token_id = config.pad_token_id = tokenizer_of(name).pad_token_id
        except (OSError, ValueError):
            pass  # a model without a tokenizer: what feeds it must know
    return model


def tokenized(data: Any, text: str, label: str | None, model: str, max_length: int | None, spec: str) -> Any:
    """The table as token ids (and `labels`).

    max_length: in tokens; None: USUAL_LENGTH, or fewer where the model has fewer positions. What is longer is cut, and
    counted in a warning. Raises ValueError for rows without a text, and a max_length beyond the model's positions.
    """
    config, tokenizer = config_of(model), tokenizer_of(model)
    longest = _length(config, tokenizer, max_length)
    rows = data.with_format(None)[text][:]
    wrong = [row for row, value in enumerate(rows) if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{spec!r}: {len(wrong)} rows have no text ({text}), e.g. {wrong[:5]}. Leave them out.")
    tokens = mapped(
        data,
        lambda rows: tokenizer(rows[text], truncation=True, max_length=longest),
        batched=True,
        remove_columns=[name for name in data.column_names if name != label],
        desc="tokenize",
    )
    ids = tokens["input_ids"]
    empty = [row for row, found in enumerate(ids) if not found]
    if empty:
        raise ValueError(f"{spec!r}: {len(empty)} rows have no text ({text}), e.g. {empty[:5]}. Leave them out.")
    full = [row for row, found in enumerate(ids) if len(found) >= longest]
    cut = sum(len(found) > longest for found in tokenizer([rows[row] for row in full])["input_ids"]) if full else 0
    if cut:
        logger.warning(
            "%r: %s of %s texts are longer than %s tokens and were cut (max_length).", spec, cut, len(ids), longest
        )
    check_tokens(tokens, model, spec)
    return tokens if label in (None, "labels") else tokens.rename_column(label, "labels")


def _length(config: Any, tokenizer: Any, max_length: int | None) -> int:
    limit = position_limit(config)
    if max_length is None:
        return min(USUAL_LENGTH, limit or USUAL_LENGTH, tokenizer.model_max_length or USUAL_LENGTH)
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1 token.")
    if limit is not None and max_length > limit:
        raise ValueError(f"max_length={max_length}: the model has {limit} positions. Pass at most {limit}, or leave it "
                         "out: longer texts are cut.")  # fmt: skip
    return max_length


def check_tokens(data: Any, model: str, spec: str) -> None:
    """Raise ValueError for token ids that the model has no embedding for, and rows longer than its positions."""
    config = config_of(model)
    text = config.get_text_config()
    size, limit = getattr(text, "vocab_size", None), position_limit(config)
    for row, ids in enumerate(data.with_format(None)["input_ids"]):
        if size is not None and ids and not 0 <= min(ids) <= max(ids) < size:
            wrong = max(ids) if max(ids) >= size else min(ids)
            raise ValueError(
                f"{spec!r}: row {row} has the token id {wrong}, the embedding of {model!r} has {size} rows "
                "(vocab_size): the tokenizer is another model's, or has grown. Take the model's own, or enlarge the "
                "model (resize_token_embeddings)."
            )
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"{spec!r}: row {row} has {len(ids)} tokens (input_ids), {model!r} has {limit} positions. Cut it, or "
                "leave it out."
            )


def unmoved_by_padding(model: Any, batch: dict[str, Any], label_names: Sequence[str]) -> dict[str, Any]:
    """A batch that a decoder judges as without padding on the left: places are those among a text's own tokens, and its
    first token, which nothing but padding stands before, is not to be predicted."""
    mask, base = batch.get("attention_mask"), model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or "position_ids" in batch or bool(mask[:, 0].all()):
        return batch
    config = getattr(base, "config", None)
    if config is None or not reads_forward_only(config):
        return batch
    batch = dict(batch)
    if "position_ids" in inspect.signature(base.forward).parameters:
        batch["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    for name in label_names:
        if isinstance(batch.get(name), torch.Tensor) and batch[name].shape == mask.shape:
            alone = torch.nn.functional.pad(mask[:, :-1] == 0, (1, 0))
            batch[name] = batch[name].masked_fill(alone, -100)
    return batch


def text_collator(data: Any, model: str) -> "TextCollator":
    """The collator of a table of token ids. Raises ValueError where the model needs a padding token and has none."""
    config, tokenizer = config_of(model), tokenizer_of(model)
    kind = model_class(config)
    if tokenizer.pad_token_id is None and judges_samples(kind) and reads_forward_only(config):
        raise ValueError(
            f"{model!r}: its tokenizer has no padding and no end token, by which {kind.__name__} finds the last token "
            "of a text. Give it one (tokenizer.pad_token = ...; save_pretrained) that the model's embedding has."
        )
    return TextCollator(
        tokenizer.pad_token_id or 0, learns_text="labels" not in data.column_names,
        token_type=getattr(tokenizer, "pad_token_type_id", 0),
    )  # fmt: skip


@dataclass(frozen=True)
class TextCollator:
    """Rows of token ids as a batch, padded on the right; padding that rows bring along is taken off first.

    pad: id of the padding token. learns_text: labels are the tokens themselves. (A class, so that other processes can
    have it.)
    """

    pad: int
    learns_text: bool = False
    token_type: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [_bare(row) for row in rows]
        for row in rows:
            row.setdefault("attention_mask", [1] * len(row["input_ids"]))
            if self.learns_text:
                row["labels"] = list(row["input_ids"])
        fill = {"input_ids": self.pad, "token_type_ids": self.token_type, "labels": -100}
        return {name: _padded([row[name] for row in rows], fill.get(name, 0)) for name in rows[0]}


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of plain lists, without padding at either end."""
    row = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
    row = {name: value for name, value in row.items() if not isinstance(value, str) and value is not None}
    count, mask = len(row["input_ids"]), row.get("attention_mask")
    kept = [place for place, seen in enumerate(mask) if seen] if mask is not None else []
    if not kept or len(kept) == count or kept[-1] - kept[0] + 1 != len(kept):
        return row
    span = slice(kept[0], kept[-1] + 1)
    return {name: v[span] if isinstance(v, list) and len(v) == count else v for name, v in row.items()}


def _padded(values: list, fill: int) -> torch.Tensor:
    if not isinstance(values[0], list):
        return torch.tensor(values)
    if any(isinstance(part, float) for value in values for part in value):
        return torch.tensor(values)  # several values a sample: no sequence
    longest = max(map(len, values))
    return torch.tensor([[*value, *[fill] * (longest - len(value))] for value in values])
