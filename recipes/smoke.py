"""`--smoke`: the real recipe's stages on a tiny random teacher, a tokenizer and rows made for it.

Nothing is loaded from a hub, and the figures mean nothing; that every stage works does.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..eval.byte_pairs import train_byte_pairs
from ..eval.errors import RecipeError
from ..eval.tasks import get_task
from .consistency import reads_rows
from .generation_rules import generates
from .schema import Budget, Recipe

TOPICS = ("card", "cash", "rate", "loan", "fees", "bank")
ACTIONS = ("open", "close", "find", "check", "change", "report", "cancel", "order")
OBJECTS = ("account", "payment", "transfer", "statement", "limit", "address", "receipt", "refund")
UNUSED = ("violin", "glacier", "pepper", "orbit")  # words no row has: what vocabulary cuts take
SPECIALS = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}
DECODERS = ("llama", "qwen3")
HIDDEN, HEADS, WIDTH, EPOCHS = 32, 4, 64, 2
VOCABULARY, OTHER_VOCABULARY, NEW_TOKENS = 512, 300, 12
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SMOKE_ROUNDS = 2
SMOKE_BOUNDS = {"latency_ms": 1e3, "usd_per_million": 1e6, "retain": 1e-9}
"""What any tiny model keeps to; of shares, 0.8 leaves something to cut."""


def write_stand_ins(recipe: Recipe, folder: Path, depth: int | None = None) -> None:
    """Writes the tiny teacher, the other student if there is one, and the rows.

    Args:
        recipe: The real one.
        folder: Where to.
        depth: Layers of the models; as many as the recipe's cut needs if None.

    Raises:
        RecipeError: If the recipe does not say which architecture the tiny teacher has.
    """
    architecture = _architecture(recipe)
    if (architecture in DECODERS) != generates(recipe):
        raise RecipeError(
            f"smoke.architecture: {architecture} is not what {recipe.task} runs on; generation "
            f"takes {' or '.join(DECODERS)}, other tasks bert, roberta or distilbert."
        )
    layers, _ = _layers(recipe.prune.model_dump() if recipe.prune else None, depth)
    _write_rows(recipe, folder / "data")
    write_model(architecture, _teacher(recipe, folder, depth), layers, HIDDEN)
    if recipe.student is not None:
        vocabulary = OTHER_VOCABULARY if _translates(recipe) else VOCABULARY
        write_model(architecture, _student(recipe, folder, depth), layers, HIDDEN // 2, vocabulary)


def _architecture(recipe: Recipe) -> str:
    if recipe.smoke is None:
        raise RecipeError(
            "--smoke needs to know the architecture of the tiny teacher: add smoke: "
            "{architecture: bert} (or roberta, distilbert) to the recipe."
        )
    return recipe.smoke.architecture


def _teacher(recipe: Recipe, folder: Path, depth: int | None) -> Path:
    layers, _ = _layers(recipe.prune.model_dump() if recipe.prune else None, depth)
    return folder / f"teacher-{_architecture(recipe)}-{layers}"


def _student(recipe: Recipe, folder: Path, depth: int | None) -> Path:
    kind = "foreigner" if _translates(recipe) else "student"
    return folder / _teacher(recipe, folder, depth).name.replace("teacher", kind)


def _translates(recipe: Recipe) -> bool:
    """Whether the student has another tokenizer than the teacher."""
    return recipe.distill is not None and "uld" in recipe.distill.losses


def smoke_recipe(recipe: Recipe, folder: Path, depth: int | None = None) -> Recipe:
    """The recipe that runs on the stand-ins of `write_stand_ins`.

    Args:
        recipe: The real one; its stages and options stay, its sizes shrink.
        folder: Where model and files are.
        depth: Layers of the stand-ins; where it is given, the recipe's own layers are kept.

    Raises:
        RecipeError: If the recipe does not say which architecture the tiny teacher has.
    """
    files = {split: str(folder / "data" / f"{split}.jsonl") for split in ("train", "test")}
    values = recipe.model_dump(mode="json")
    values["name"] = f"{recipe.name}-smoke"
    values["data"] |= {"source": None, "config": None, "revision": None, "columns": {}}
    values["data"]["files"] = files
    _, keep = _layers(values.get("prune"), depth)
    values["teacher"] |= {
        "kind": "checkpoint",
        "model": str(_teacher(recipe, folder, depth)),
        "files": None,
        "revision": None,
        **dict.fromkeys(("new", "endpoint", "tokenizer")),
    }
    if values["generation"]:
        few = min(values["generation"]["max_new_tokens"], NEW_TOKENS)
        values["generation"]["max_new_tokens"] = few
        values["generation"]["template"] = {}  # arguments of the real template, not of TEMPLATE
    if recipe.teacher.finetune is None and get_task(recipe.task).signal == "class_logits":
        # The stand-in of a classifier that is ready must first learn the made-up classes.
        values["teacher"]["finetune"] = {"epochs": 1}
    if values["student"] is not None:
        values["student"] |= {"model": str(_student(recipe, folder, depth)), "revision": None}
    for section in (values["teacher"]["finetune"], values["distill"]):
        if section:
            section["epochs"] = min(section.get("epochs", EPOCHS), EPOCHS)
            section["batch_size"] = min(section.get("batch_size", 16), 16)
            section["arguments"] = _shortened(section.get("arguments", {}))
    if values["prune"]:
        assert recipe.prune is not None
        values["prune"] |= {"layers": keep, "round_to": None}
        if reads_rows(recipe.prune) or recipe.budget is not None:
            values["prune"]["calibration_rows"] = 32
        if recipe.prune.mask is not None and isinstance(recipe.prune.mask.pattern, str):
            values["prune"]["mask"]["pattern"] = "2:4"  # which tiny widths are a multiple of
        tiny = {"intermediate_size": WIDTH // 2, "hidden_size": HIDDEN // 2}
        tiny |= {"attention_heads": HEADS // 2, "kv_heads": 1}
        values["prune"] |= {axis: size for axis, size in tiny.items() if values["prune"][axis]}
        values["prune"]["rounds"] = min(values["prune"]["rounds"], SMOKE_ROUNDS)
    if values["budget"]:
        bound, _ = Budget.model_validate(values["budget"]).bound
        values["budget"] |= {bound: SMOKE_BOUNDS.get(bound, 0.8), "shapes": 3, "processes": 1}
    ours = [name for name in recipe.evaluate.metrics if name in get_task(recipe.task).metrics]
    values["evaluate"] |= {
        "resamples": 200,
        "latency_rows": min(recipe.evaluate.latency_rows, 20),
        "metrics": ours,
        "out_of_scope": str(_strangers(folder)) if recipe.evaluate.out_of_scope else None,
    }
    return Recipe.model_validate(values)


def _shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A stated number of steps is meant for the real rows."""
    return {**arguments, "max_steps": min(arguments["max_steps"], 8)} if (
        arguments.get("max_steps", -1) > 0
    ) else dict(arguments)  # fmt: skip


def _layers(prune: Mapping[str, Any] | None, depth: int | None = None) -> tuple[int, Any]:
    """Layers of the tiny teacher, and the cut that is left of the recipe's."""
    wanted = prune["layers"] if prune else None
    if depth is not None:
        return depth, wanted
    more = min(prune["rounds"], SMOKE_ROUNDS) if prune else 1
    if isinstance(wanted, list):
        few = min(len(wanted), 2)
        return few + more, list(range(few))
    if wanted is None:
        return 2, None
    few = min(wanted, 2)
    return few + more, few


def _sentences() -> list[tuple[str, str]]:
    """Queries with their topic, in an order that does not depend on the machine."""
    found = []
    for i, (topic, action, thing) in enumerate(itertools.product(TOPICS, ACTIONS, OBJECTS)):
        found.append((f"how do I {action} the {topic} {thing} number {i % 7}", topic))
    random.Random(0).shuffle(found)
    return found


def _write_rows(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = _sentences()
    for split, part in (("train", rows[:192]), ("test", rows[192:256])):
        lines = [
            {name: text.split()[3] for name in recipe.evaluate.slices} | _row(recipe, text, topic)
            for text, topic in part
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        path = folder / f"{split}.jsonl"
        path.with_suffix(".part").write_text(content, encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)
    if recipe.evaluate.out_of_scope:
        lines = [{"text": f"what does a {word} weigh"} for word in UNUSED]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        _strangers(folder.parent).write_text(content, encoding="utf-8")


def _strangers(folder: Path) -> Path:
    """The rows out of scope, of a recipe that has some."""
    return folder / "data" / "out_of_scope.jsonl"


def _row(recipe: Recipe, text: str, topic: str) -> dict[str, Any]:
    """A row in the columns of the recipe's task."""
    signal = get_task(recipe.task).signal
    if signal == "class_logits":
        return {"text": text, "label": topic}
    if signal == "embedding":
        return {"query": text, "text": f"{topic}: the answer to {text}"}
    answer, settings = f"{topic} {text.split()[3]}", recipe.generation
    turns = "messages" in recipe.data.columns or (
        settings is not None and (bool(settings.template) or settings.train_on == "all")
    )
    if not turns:
        return {"prompt": f"{text} -> ", "completion": answer}
    asked, told = {"role": "user", "content": text}, {"role": "assistant", "content": answer}
    return {"messages": [asked, told]}


def write_model(
    architecture: str, folder: Path, layers: int, hidden: int, vocabulary: int = VOCABULARY
) -> None:
    """Saves a randomly initialised backbone and a tokenizer that knows the rows' words."""
    import torch
    import transformers

    from ..eval.models import no_loading_bar

    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer = _tokenizer(architecture, vocabulary)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if architecture == "distilbert":
        sizes |= {"n_layers": layers, "dim": hidden, "n_heads": HEADS, "hidden_dim": WIDTH}
    else:
        sizes |= {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": HEADS,
            "intermediate_size": WIDTH,
        }
    if architecture in DECODERS:
        ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos")}
        sizes |= {"num_key_value_heads": HEADS // 2, "head_dim": HIDDEN // HEADS, **ids}
    sizes["max_position_embeddings"] = 130
    config = transformers.AutoConfig.for_model(architecture, **sizes)
    with torch.random.fork_rng(), no_loading_bar():
        torch.manual_seed(0)
        causal = architecture in DECODERS
        model: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        model.from_config(config).save_pretrained(str(part))
    tokenizer.save_pretrained(str(part))
    os.replace(part, folder)


def _tokenizer(architecture: str, vocabulary: int) -> Any:
    """A tokenizer of the architecture's kind, its vocabulary written by hand.

    The trainers of `tokenizers` break ties differently in every process, and two smoke runs of one
    recipe must give the same student.
    """
    from transformers import PreTrainedTokenizerFast

    if architecture in DECODERS:
        tokenizer = train_byte_pairs([text for text, _ in _sentences()], vocabulary, 128)
        tokenizer.chat_template = TEMPLATE
        return tokenizer
    kind = "roberta" if architecture == "roberta" else "bert"
    backend = _byte_pairs() if kind == "roberta" else _word_pieces()
    specials = SPECIALS[kind]
    if kind == "roberta":
        names = dict(zip(("bos", "pad", "eos", "unk", "mask"), specials, strict=True))
        names |= {"cls": "<s>", "sep": "</s>"}
    else:
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), specials, strict=True))
    inputs = ["input_ids", "attention_mask"]
    inputs += ["token_type_ids"] if architecture == "bert" else []
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=backend,
        model_input_names=inputs,
        model_max_length=128,
        **{f"{name}_token": token for name, token in names.items()},
    )


def _words() -> list[str]:
    texts = [*(text for text, _ in _sentences()), "the answer to"]
    return sorted({word for text in texts for word in text.lower().split()} | set(UNUSED))


def _word_pieces() -> Any:
    """WordPiece: specials, every printable character alone and within a word, and whole words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    characters = [chr(i) for i in range(33, 127) if not chr(i).isupper()]
    within = [f"##{c}" for c in characters if c.isalnum()]
    words = [word for word in _words() if len(word) > 1]
    vocabulary = {t: i for i, t in enumerate([*SPECIALS["bert"], *characters, *within, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    ends = ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    backend.post_processor = processors.BertProcessing(*ends)
    return backend


def _byte_pairs() -> Any:
    """Byte-level BPE: specials, every byte, and the merges that build each word from its left."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = [*SPECIALS["roberta"], *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges: dict[tuple[str, str], None] = {}
    space = "\u0120"  # how byte-level BPE writes a space
    for word in [start + word for word in _words() for start in ("", space)]:
        for end in range(1, len(word)):
            merges.setdefault((word[:end], word[end]))
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    backend = Tokenizer(models.BPE(vocabulary, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend
