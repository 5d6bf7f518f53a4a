"""A stock checkpoint together with all that turns a text into its signal."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from .batching import token_batches
from .encoding import Encoding, load_dense, read_encoding
from .errors import RecipeError, RunError
from .next_token import check_causal, next_token, output_head, stock_model
from .tasks import Signal, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Row = dict[str, list[int]]
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class ModelOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        values: The signal, (B, W): class logits, embeddings, or the logits of the token after each
            row's last.
        hidden_states: Token vectors after the embeddings and after each layer, L + 1 tensors of
            (B, T, H), where they were asked for.
    """

    values: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Makes one vector of a row's token vectors.

    Args:
        states: Token vectors, (B, T, H).
        mask: 1 at tokens, 0 at padding, (B, T).
        pooling: ``mean`` over tokens, ``cls`` (the first token) or ``max`` over tokens.

    Returns:
        (B, H), in the dtype of ``states``.
    """
    if pooling == "cls":
        return states[:, 0]
    keep = mask.unsqueeze(-1).to(states.dtype)  # (B, T, 1)
    if pooling == "max":
        return states.masked_fill(keep == 0, torch.finfo(states.dtype).min).amax(1)
    return (states * keep).sum(1) / keep.sum(1).clamp(min=1e-9)


class TextModel(nn.Module):
    """A backbone that stock transformers loads, with tokenizer, pooling and normalisation.

    Attributes:
        backbone: ``AutoModel`` for embeddings, ``AutoModelForSequenceClassification`` for classes,
            ``AutoModelForCausalLM`` for token distributions.
        tokenizer: A fast tokenizer.
        signal: What ``forward`` gives.
        encoding: Pooling, normalisation, prompts and maximum length.
        dense: A linear map after pooling, or None.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        signal: Signal,
        encoding: Encoding,
        dense: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.signal = signal
        self.encoding = encoding
        self.dense = dense
        accepted = inspect.signature(backbone.forward).parameters
        # Decoders have no segments; GPT-2 takes them, and a plain fast tokenizer offers them.
        given = set() if signal == "token_distribution" else set(tokenizer.model_input_names)
        self.inputs = tuple(n for n in INPUTS if n in accepted and (n in given or n != INPUTS[2]))

    @property
    def config(self) -> Any:
        """The backbone's own config."""
        return self.backbone.config

    @property
    def width(self) -> int:
        """Numbers per row of the signal."""
        if self.signal == "class_logits":
            return int(self.config.num_labels)
        if self.signal == "token_distribution":
            return int(self.head.weight.shape[0])
        return int(self.dense.out_features if self.dense is not None else self.config.hidden_size)

    @property
    def labels(self) -> list[str] | None:
        """Class names in the order of the logits, or None where there are no classes."""
        if self.signal != "class_logits":
            return None
        return [str(self.config.id2label[i]) for i in range(self.config.num_labels)]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Computes the signal of a padded batch.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 at tokens, 0 at padding, (B, T).
            token_type_ids: Segment ids, (B, T), for models that take them.
            output_hidden_states: Whether to give the token vectors of every layer as well.
        """
        if self.signal == "token_distribution":
            return ModelOutput(
                *next_token(self.backbone, input_ids, attention_mask, output_hidden_states)
            )
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            **extra,
        )
        hidden = out.hidden_states if output_hidden_states else None
        if self.signal == "class_logits":
            return ModelOutput(out.logits, hidden)
        vector = pool(out.last_hidden_state, attention_mask, self.encoding.pooling or "mean")
        if self.dense is not None:
            vector = self.dense(vector)
        if self.encoding.normalize:
            vector = nn.functional.normalize(vector, dim=-1)
        return ModelOutput(vector, hidden)

    @property
    def head(self) -> nn.Linear:
        """The map from a token's state to the logits of the next token, (V, H) in ``weight``.

        What some architectures do to the logits behind it (`logit_scale` of Cohere, the soft cap of
        Gemma 2) is the stock class's; ``forward`` does it too.

        Raises:
            RunError: If the model has none.
        """
        return output_head(self.backbone)

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The base model's states after its last norm, for losses that project by themselves.

        Args:
            input_ids: Token ids, padded on the right, (B, T).
            attention_mask: 1 at tokens, 0 at padding, (B, T).

        Returns:
            (B, T, H); `head` makes logits of them.
        """
        out = stock_model(self.backbone).base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        )
        found: Tensor = out.last_hidden_state
        return found

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, role: str = "text"
    ) -> list[Row]:
        """Turns texts into rows of ids, unpadded, cut to the maximum length, specials included.

        Args:
            texts: One text a row.
            pairs: The second text of each row, or None.
            role: ``query``, ``document`` or ``text``: whose prompt is put in front.
        """
        if not len(texts):
            return []
        prompt = self.encoding.prompt(role)
        encoded = self.tokenizer(
            [prompt + text for text in texts] if prompt else list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=self.encoding.max_length,
            padding=False,
        )
        return [{n: encoded[n][i] for n in self.inputs} for i in range(len(texts))]

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pads rows on the right into tensors of (B, T)."""
        longest = max(len(row["input_ids"]) for row in rows)
        pad = {"input_ids": self.tokenizer.pad_token_id or 0}
        pad["token_type_ids"] = self.tokenizer.pad_token_type_id
        batch = {}
        for name in self.inputs:
            block = np.full((len(rows), longest), pad.get(name, 0), dtype=np.int64)
            for i, row in enumerate(rows):
                block[i, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(block)
        return batch

    @torch.inference_mode()
    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        role: str = "text",
        batch_tokens: int = 8192,
        precision: str = "fp32",
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Computes the signal of many texts.

        Args:
            texts: One text a row, n of them.
            pairs: The second text of each row, or None.
            role: Whose prompt is put in front.
            batch_tokens: Rows × longest row of a batch, at most.
            precision: ``fp32``, or ``bf16``/``fp16`` under autocast.
            progress: Called with the number of rows of each finished batch.

        Returns:
            (n, W) float32 in the order of the texts.
        """
        rows = self.tokenize(texts, pairs, role)
        out = np.empty((len(rows), self.width), dtype=np.float32)
        device = self.backbone.device
        was_training = self.training
        self.eval()
        for index in token_batches([len(row["input_ids"]) for row in rows], batch_tokens):
            batch = self.collate([rows[i] for i in index])
            with autocast(device, precision):
                values = self(**{k: v.to(device) for k, v in batch.items()}).values
            out[index] = values.float().cpu().numpy()
            if progress is not None:
                progress(len(index))
        self.train(was_training)
        return out


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Runs a block in the given precision; ``fp32`` leaves it as it is.

    Raises:
        RecipeError: If the precision is none of fp32, bf16 and fp16.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "fp32":
        yield
        return
    if precision not in dtypes:
        raise RecipeError(f"Unknown precision '{precision}'; choose fp32, bf16 or fp16.")
    with torch.autocast(device.type, dtype=dtypes[precision]):
        yield


@contextlib.contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keeps transformers from drawing its "Loading weights" bar."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads a checkpoint's fast tokenizer.

    Raises:
        RunError: If the folder has none, or only a slow one.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise RunError(
            f"The checkpoint '{folder.name}' has no tokenizer (none of "
            f"{', '.join(TOKENIZER_FILES)}); save one beside the model with "
            "tokenizer.save_pretrained(folder)."
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), use_fast=True)
    if not tokenizer.is_fast:
        raise RunError(f"The checkpoint '{folder.name}' has no fast tokenizer (tokenizer.json).")
    # A tokenizer.json may carry truncation and padding of its own; ours are given at each call.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return cast("PreTrainedTokenizerFast", tokenizer)


def context_length(config: Any) -> int:
    """Tokens a backbone can take; RoBERTa's positions start behind its padding id."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 10**6)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return positions - int(config.pad_token_id or 0) - 1
    return positions


def load_model(
    folder: str | Path,
    task: Task,
    *,
    labels: Sequence[str] | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    max_length: int | None = None,
) -> TextModel:
    """Loads a checkpoint folder with the stock Auto class of the task.

    Args:
        folder: A stock checkpoint with its tokenizer (`find_checkpoint` makes one of a hub name).
        task: Says which Auto class and which signal.
        labels: Class names; gives a new classification head where the checkpoint's differs.
        dtype: A torch dtype by name.
        attn_implementation: As transformers takes it, or None for its default.
        max_length: Tokens kept of a text, or None for the checkpoint's own.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        RunError: If there is no checkpoint or tokenizer, or stock loading would invent weights.
        RecipeError: If the dtype is unknown or the classes do not fit.
    """
    import transformers

    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise RunError(f"'{folder}' is not a checkpoint: it has no config.json.")
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise RecipeError(f"Unknown dtype '{dtype}'; float32, bfloat16 and float16 are common.")
    _refuse_custom_architecture(folder)
    tokenizer = load_tokenizer(folder)
    extra: dict[str, Any] = {}
    if attn_implementation:
        extra["attn_implementation"] = attn_implementation
    if labels is not None:
        extra["id2label"] = dict(enumerate(labels))
        extra["label2id"] = {name: i for i, name in enumerate(labels)}
        extra["ignore_mismatched_sizes"] = True
    try:
        with no_loading_bar():
            backbone, info = getattr(transformers, task.head).from_pretrained(
                str(folder),
                dtype=torch_dtype,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                **extra,
            )
    except (OSError, ValueError) as error:
        if "Unrecognized configuration class" in str(error):  # and then a list of all there are
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
            raise RunError(
                f"'{folder}' is a {kind}, and transformers has no {task.head} of it: task "
                f"{task.name} runs on another kind of model."
            ) from error
        raise RunError(f"Cannot load the checkpoint '{folder}': {error}") from error
    _refuse_invented_weights(folder, backbone, info, new_head=labels is not None)
    pooled = task.signal == "embedding"
    context = context_length(backbone.config)
    if task.signal == "token_distribution":
        check_causal(backbone)
        max_length = max_length or context  # a tokenizer's own limit is no language model's
    encoding, dense = read_encoding(folder, pooled=pooled, context=context, max_length=max_length)
    model = TextModel(
        backbone,
        tokenizer,
        task.signal,
        encoding,
        load_dense(dense).to(torch_dtype) if dense else None,
    )
    return model.eval()


def _refuse_custom_architecture(folder: Path) -> None:
    """Only what transformers itself can build is loaded: code from a checkpoint is never run."""
    from transformers import CONFIG_MAPPING

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("model_type") or "unnamed")
    if kind not in CONFIG_MAPPING:
        raise RunError(
            f"The checkpoint '{folder.name}' is of the architecture '{kind}', which the installed "
            "transformers does not have; paredown runs no code that a checkpoint brings. Save its "
            "weights as a stock architecture, or record its answers (`teacher: {kind: recorded}`) "
            "and name a stock `student: {model: …}`."
        )


def _refuse_invented_weights(folder: Path, backbone: Any, info: Any, *, new_head: bool) -> None:
    """Random weights are welcome in a new classification head only."""
    base = f"{backbone.base_model_prefix}."
    missing = [str(k) for k in info["missing_keys"]]
    if new_head:
        missing = [k for k in missing if k.startswith(base) and ".pooler." not in k]
    else:
        # An unused pooler is no part of an embedding.
        missing = [k for k in missing if not k.startswith("pooler.")]
    if missing:
        raise RunError(
            f"The checkpoint '{folder.name}' lacks {len(missing)} weights of "
            f"{type(backbone).__name__} ({', '.join(sorted(missing)[:3])} …): it was saved for "
            "another head or architecture, and random weights would stand in for them."
        )
