"""How a text becomes a model's signal: pooling, normalisation, prompts, maximum length.

These are read from, and written to, the files of the sentence-transformers layout
(https://sbert.net): ``modules.json``, ``1_Pooling/config.json``, ``2_Dense/``,
``sentence_bert_config.json`` and ``config_sentence_transformers.json``. So a student for
retrieval is at once a folder for ``AutoModel`` and one for ``SentenceTransformer``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import RunError

if TYPE_CHECKING:
    from torch import nn

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max")
DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class Encoding:
    """What is done to a text before and after the backbone.

    Attributes:
        max_length: Tokens kept of a text, specials included.
        pooling: How token vectors become one vector; None for models with a head of their own.
        normalize: Whether the embedding is scaled to length 1.
        prompts: Text put in front, by role (``query``, ``document``, ``text``).
    """

    max_length: int
    pooling: Pooling | None = None
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)

    def prompt(self, role: str) -> str:
        """Returns what is put in front of a text of this role."""
        return self.prompts.get(role, "")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path.name} of the checkpoint is not JSON: {error}.") from error


def _module_folder(folder: Path, name: str) -> Path:
    """A module's folder, which must lie inside the checkpoint (the file is from outside)."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RunError(f"modules.json names '{name}', which is outside the checkpoint folder.")
    return path


def _pooling(config: dict[str, Any]) -> Pooling:
    if mode := config.get("pooling_mode"):
        chosen = [str(mode)]
    else:
        keys = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        keys["pooling_mode_max_tokens"] = "max"
        chosen = [keys.get(key, key) for key, on in config.items() if on is True]
        chosen = [name for name in chosen if name in POOLINGS or name.startswith("pooling_mode")]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise RunError(
            f"The checkpoint pools by {', '.join(chosen) or 'nothing'}; "
            f"paredown knows one of {', '.join(POOLINGS)}."
        )
    return next(mode for mode in POOLINGS if mode == chosen[0])


def _prompts(folder: Path) -> dict[str, str]:
    path = folder / "config_sentence_transformers.json"
    config = _read(path) if path.exists() else {}
    given = {str(k): str(v) for k, v in (config.get("prompts") or {}).items() if v}
    default = given.get(config.get("default_prompt_name") or "", "")
    documents = ("document", "passage", "corpus")
    aliases = {"query": ("query",), "document": documents, "text": ("text",)}
    found = {
        role: next((given[name] for name in names if name in given), default)
        for role, names in aliases.items()
    }
    return {role: text for role, text in found.items() if text}


def _tokenizer_limit(folder: Path) -> int | None:
    """The tokenizer's own limit, which `save_model` writes for classifiers; huge is none."""
    path = folder / "tokenizer_config.json"
    limit = _read(path).get("model_max_length") if path.exists() else None
    return int(limit) if isinstance(limit, int | float) and 0 < limit < 10**6 else None


def read_encoding(
    folder: Path, *, pooled: bool, context: int, max_length: int | None
) -> tuple[Encoding, Path | None]:
    """Reads a checkpoint's encoding.

    Without sentence-transformers files an embedding is the mean over tokens, scaled to length 1.

    Args:
        folder: The checkpoint.
        pooled: Whether the model gives embeddings (else class logits).
        context: Tokens the backbone can take.
        max_length: The recipe's own limit, or None for the checkpoint's.

    Returns:
        The encoding, and the folder of a ``Dense`` module where there is one.

    Raises:
        RunError: If a file cannot be read, or names a module that is not known.
    """
    limits = [context]
    if (path := folder / "sentence_bert_config.json").exists():
        limits.append(int(_read(path).get("max_seq_length") or context))
    elif not pooled:
        limits.append(_tokenizer_limit(folder) or DEFAULT_MAX_LENGTH)
    if max_length is not None:
        limits = [context, max_length]
    length = min(limits)
    if not pooled:
        return Encoding(max_length=length), None
    pooling: Pooling = "mean"
    normalize, dense = True, None
    if (path := folder / "modules.json").exists():
        normalize = False
        for module in _read(path):
            kind = str(module.get("type", "")).rsplit(".", 1)[-1]
            where = _module_folder(folder, str(module.get("path", "")))
            if kind == "Pooling":
                pooling = _pooling(_read(where / "config.json"))
            elif kind == "Dense":
                dense = where
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise RunError(
                    f"The checkpoint has a sentence-transformers module '{kind}'; paredown knows "
                    "Transformer, Pooling, Dense and Normalize."
                )
    return Encoding(length, pooling, normalize, _prompts(folder)), dense


def load_dense(folder: Path) -> nn.Linear:
    """Loads a sentence-transformers ``Dense`` module as a linear map (float32).

    Raises:
        RunError: If it has an activation, or its weights are not in safetensors.
    """
    import torch
    from safetensors.torch import load_file

    config = _read(folder / "config.json")
    activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation != "Identity":
        raise RunError(f"The Dense module has activation {activation}; only Identity is known.")
    path = folder / "model.safetensors"
    if not path.exists():
        raise RunError(
            "The Dense module's weights are not in safetensors, and paredown reads no pickles; "
            "save the checkpoint again with safe_serialization=True."
        )
    weights = load_file(str(path))
    layer = torch.nn.Linear(
        int(config["in_features"]), int(config["out_features"]), bias=bool(config["bias"])
    )
    layer.load_state_dict({k.removeprefix("linear."): v for k, v in weights.items()})
    return layer


def write_encoding(
    folder: Path, encoding: Encoding, *, hidden: int, dense: nn.Linear | None
) -> None:
    """Writes the sentence-transformers files beside a stock checkpoint.

    Args:
        folder: The checkpoint.
        encoding: With a pooling.
        hidden: Width of the token vectors.
        dense: A linear map (hidden → width) after pooling, or None.
    """

    def write(name: str, content: Any) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    kinds = ["Transformer", "Pooling"]
    kinds += ["Dense"] * (dense is not None) + ["Normalize"] * encoding.normalize
    paths = ["" if i == 0 else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write("modules.json", modules)
    write(
        "1_Pooling/config.json",
        {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": encoding.pooling == "cls",
            "pooling_mode_mean_tokens": encoding.pooling == "mean",
            "pooling_mode_max_tokens": encoding.pooling == "max",
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    if dense is not None:
        from safetensors.torch import save_file

        write(
            "2_Dense/config.json",
            {
                "in_features": dense.in_features,
                "out_features": dense.out_features,
                "bias": dense.bias is not None,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        weights = {f"linear.{k}": v.detach().contiguous() for k, v in dense.state_dict().items()}
        save_file(weights, str(folder / "2_Dense" / "model.safetensors"))
    write("sentence_bert_config.json", {"max_seq_length": encoding.max_length})
    write("config_sentence_transformers.json", {"prompts": encoding.prompts})
