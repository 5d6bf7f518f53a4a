"""Stage ``capture`` where the teacher is behind an endpoint, or its answers are on file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import find_checkpoint, sha256
from ..eval.data import Data
from ..eval.dialogues import Dialogues
from ..eval.errors import RecipeError, RunError
from ..eval.models import load_tokenizer
from .generation_rules import encoding_spec, server_settings
from .schema import Endpoint, Generation, Recipe
from .stage_teacher import teacher_record
from .store import Context, Folder, Stage

if TYPE_CHECKING:
    from ..distill.chat_answers import Answer
    from ..distill.endpoint import Summary
    from ..distill.endpoint_settings import EndpointSettings
    from ..distill.logprob_mapping import LogprobMapper
    from ..distill.token_targets import TopK

ANSWERS = "answers"
UNFINISHED = "unfinished"
"""The stream that names the items whose text ended at the length limit."""
CONTEXT = 1 << 20  # a tokenizer alone has no context; the server has checked the prompt's length


def capture_answers_stage(recipe: Recipe, data: Folder, teacher: Folder) -> Stage:
    """Records what the teacher answered to the training prompts.

    Args:
        recipe: For the endpoint, and whether log-probabilities are kept.
        data: The prompts.
        teacher: The files, where answers are recorded already.
    """
    generation = recipe.generation or Generation()
    kind, endpoint = recipe.teacher.kind, recipe.teacher.endpoint
    settings: dict[str, Any] = {
        "capture": recipe.capture.model_dump(),
        "generation": generation.model_dump(),
        "endpoint": asked(endpoint) if endpoint else None,
        "model": recipe.teacher.model,
        "tokenizer": None,
    }
    tokenizer = None
    if recipe.teacher.tokenizer is not None:
        tokenizer = find_checkpoint(recipe.teacher.tokenizer)
        settings["tokenizer"] = sha256(tokenizer / "tokenizer.json")

    def work(context: Context) -> None:
        if context.world.main:
            rows = Data.open(context.inputs["data"])
            prompts = {"train": list(rows.split("train")["prompt"])}
            if kind == "endpoint":
                answers, summary = ask(recipe, rows, prompts, context, "capture")
                context.facts["endpoint"] = vars(summary)
            else:
                answers = on_file(context.inputs["teacher"], prompts)
            _record(context, recipe, rows, prompts, answers, teacher, tokenizer)
        context.world.barrier()

    inputs = {"data": data, "teacher": teacher}
    return Stage("capture", "stage_capture_answers", settings, inputs, work, shared=True)


def asked(endpoint: Endpoint) -> dict[str, Any]:
    """What of an endpoint its answers depend on: not how fast they may come, or at what price."""
    names = ("base_url", "top_logprobs", "temperature", "top_p", "max_tokens", "seed", "extra_body")
    # Whole numbers that are keys become text, as they do in every file.
    found: dict[str, Any] = json.loads(
        json.dumps({name: getattr(endpoint, name) for name in names})
    )
    return found


def turns_of(data: Data, prompt: str) -> list[dict[str, str]]:
    """A prompt as the messages of a request."""
    if data.info["form"] == "text":
        return [{"role": "user", "content": prompt}]
    found: list[dict[str, str]] = json.loads(prompt)
    return found


def ask(
    recipe: Recipe,
    data: Data,
    prompts: dict[str, list[str]],
    context: Context,
    part: str,
) -> tuple[dict[str, list[Answer]], Summary]:
    """Asks the endpoint for every prompt that has no answer yet.

    The answers lie beside the stages, under what the requests depend on and nothing else: how they
    are mapped and encoded may change, and they are not paid for again. All stages that ask for
    rows of the same data share them, and one budget.

    Args:
        recipe: Says whom, and how.
        data: The rows.
        prompts: By split, those to ask for.
        context: Of the stage.
        part: The stage, whose own use is told.

    Returns:
        The answers of each split, and what was used.
    """
    from ..distill.answer_log import read_answers
    from ..distill.chat_client import Request
    from ..distill.endpoint import record_answers

    settings = server_settings(recipe)
    folder = answers_folder(context.out.parent, settings, data)
    total = sum(map(len, prompts.values()))

    def requests() -> Iterator[Request]:
        for split, texts in prompts.items():
            for row, prompt in enumerate(texts):
                yield Request(f"{split}-{row}", turns_of(data, prompt))

    def report(done: int) -> None:
        context.bar.update(done, total)

    summary = record_answers(requests(), settings, folder, report, part=part)
    context.facts["answers"] = folder.name
    found = {answer.key: answer for answer in read_answers(folder)}
    return {
        split: [found[f"{split}-{row}"] for row in range(len(texts))]
        for split, texts in prompts.items()
    }, summary


def answers_folder(stages: Path, settings: EndpointSettings, data: Data) -> Path:
    """Where the answers to some data's prompts are kept, among the stages."""
    asked_for = {
        "base_url": settings.base_url,
        "request": json.loads(json.dumps(settings.body())),
        "data": data.info["fingerprint"],
    }
    text = json.dumps(asked_for, sort_keys=True, ensure_ascii=True)
    return stages / f"{ANSWERS}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def on_file(teacher: Path, prompts: dict[str, list[str]]) -> dict[str, list[Answer]]:
    """The recorded answers of all prompts.

    Raises:
        RecipeError: If a prompt has none.
    """
    from ..distill.recorded_texts import read_answers

    files = teacher_record(teacher)["files"]
    found: dict[str, list[Answer]] = {}
    for split, texts in prompts.items():
        path = Path(files[split])
        answers = read_answers(path, f"teacher.files.{split}")
        for row, prompt in enumerate(texts):
            if prompt not in answers:
                raise RecipeError(
                    f"teacher.files.{split} ({path.name}): no recorded answer for {split} row "
                    f"{row} "
                    f"('{prompt[:60]}')."
                )
        found[split] = [answers[prompt] for prompt in texts]
    return found


def _record(
    context: Context,
    recipe: Recipe,
    data: Data,
    prompts: dict[str, list[str]],
    answers: dict[str, list[Answer]],
    teacher: Folder,
    tokenizer: Path | None,
) -> None:
    from ..distill.token_encoding import get_encoding
    from ..distill.token_recording import TokenOutputsWriter

    spec, generation = encoding_spec(recipe.capture), recipe.generation or Generation()
    mapping = None
    if spec is not None:
        assert tokenizer is not None
        if not any(answer.tokens for some in answers.values() for answer in some):
            raise RecipeError(
                f"capture.encoding: {recipe.capture.encoding} keeps log-probabilities, and the "
                "recorded answers have none: give the files of teacher.files a column logprobs, or "
                "keep texts alone (encoding: text) and learn by cross_entropy."
            )
        mapping = _Mapping(tokenizer, data, generation, answers)
        spec["k"] = min(spec["k"], mapping.mapper.columns, mapping.size - 1)
    encoding = None if spec is None or mapping is None else get_encoding(spec, mapping.size)
    writer = TokenOutputsWriter(
        context.out,
        identity={
            "teacher": teacher.fingerprint,
            "data": data.info["fingerprint"],
            "tokenizer": sha256(tokenizer / "tokenizer.json") if tokenizer else None,
            "generation": generation.model_dump(mode="json"),
            "over": "generations",
        },
        encoding=encoding,
    )
    items: dict[str, Any] = {}
    left: Counter[str] = Counter()
    unfinished: list[int] = []
    count = 0
    for split, texts in prompts.items():
        of = np.full(len(texts), -1, dtype=np.int64)
        for row, (prompt, answer) in enumerate(zip(texts, answers[split], strict=True)):
            key = f"{split}-{row}"
            why = unlearnable(answer)
            if why is not None:
                left[why] += 1
                continue
            if mapping is None:
                made = writer.record([], [], key=key, text=answer.text)
            else:
                found = mapping.row(prompt, answer, row)
                if found is None:
                    continue
                ids, start, listed = found
                made = writer.record(
                    ids, [(start, len(ids))], key=key, listed=listed, text=answer.text
                )
            of[row] = count
            if answer.finish == "length":
                unfinished.append(count)
            if count >= writer.next_item:
                writer.add(made)
            count += 1
        items[split] = of
    items[UNFINISHED] = np.asarray(unfinished, dtype=np.int64)
    if mapping is not None and (count or mapping.mapper.refused):
        mapping.mapper.check()
    elif not count:
        reasons = ", ".join(f"{why}: {rows:,}" for why, rows in left.most_common())
        raise RunError(
            f"No answer of the teacher can be learned ({reasons}); change its prompts or settings."
        )
    facts: dict[str, Any] = {"items": count}
    if mapping is not None:
        facts["k"] = spec["k"] if spec else None
        facts["unmapped_mass"] = mapping.mapper.unmapped
        left += mapping.mapper.refused
    facts["refused"] = dict(left)
    outputs = writer.finish(items, **facts)
    context.facts.update(facts, bytes_per_token=outputs.manifest.get("bytes_per_token"))


def unlearnable(answer: Answer) -> str | None:
    """Why an answer is not one to learn from; None where it is."""
    if answer.refusal:
        return "refused"
    if answer.finish == "content_filter":
        return "stopped by a content filter"
    return None if answer.text else "empty"


class _Mapping:
    """Answers with log-probabilities as token ids and distributions."""

    def __init__(
        self, tokenizer: Path, data: Data, generation: Generation, answers: dict[str, list[Answer]]
    ) -> None:
        from ..distill.logprob_mapping import LogprobMapper

        listed = [len(t) - 1 for rows in answers.values() for a in rows for t in a.tokens or ()]
        self.tokenizer = load_tokenizer(tokenizer)
        self.mapper: LogprobMapper = LogprobMapper(self.tokenizer, max(listed, default=1))
        self.size = self.mapper.table.size
        self.dialogues = Dialogues(
            self.tokenizer, data.info["form"], CONTEXT, template=generation.template
        )

    def row(self, prompt: str, answer: Answer, row: int) -> tuple[list[int], int, TopK] | None:
        """Ids, where the completion starts, and what is listed of it; None if it cannot be."""
        mapped = self.mapper.map(answer)
        if mapped is None:
            return None
        start = self.dialogues.prompt_ids(prompt, row)
        ids, listed = list(mapped.ids), mapped.targets
        end = int(self.tokenizer.eos_token_id)
        if answer.finish != "length" and (not ids or ids[-1] != end):
            # That it stopped says which token came last, and servers keep that one to themselves.
            ids, listed = [*ids, end], self._ended(listed, end)
        return start + ids, len(start), listed

    def _ended(self, listed: TopK, end: int) -> TopK:
        """What is listed, and behind it an end that is certain."""
        import torch

        from ..distill.token_targets import TopK

        others = (i for i in range(self.size) if i != end)
        last = [end, *itertools.islice(others, self.mapper.columns - 1)]
        certain = torch.full((1, len(last)), -torch.inf)
        certain[0, 0] = 0.0
        return TopK(
            torch.cat([listed.ids, torch.tensor([last])]),
            torch.cat([listed.log_probs, certain]),
            torch.cat([listed.rest, torch.zeros(1)]),
        )
