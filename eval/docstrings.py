"""From a docstring to a question and its answer: markup removed, summary and rest told apart."""

from __future__ import annotations

import inspect
import re

MIN_QUERY_WORDS = 4
MAX_QUERY_WORDS = 32
MAX_QUERY_CHARACTERS = 200
MIN_TEXT_WORDS = 4

_DIRECTIVE = re.compile(r"^\s*\.\. (?:[\w-]+:)?[\w-]+::?.*$|^\s*\.\. _.*$")
_FIELD_NOISE = re.compile(r"^\s*:(?:[\w-]+)(?: +[\w*.,\[\] -]+)?: *")
_UNDERLINE = re.compile(r"^\s*([=\-~^*+#\"'`_])\1{2,}\s*$")
_FENCE = re.compile(r"^\s*```.*$")
_ROLE = re.compile(r":(?:[\w.+-]+:)?[\w.+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}|\[([^\]\[]+)\]\([^)\s]*\)")
_TICKS = re.compile(r"\[?(`{1,3})~?([^`]+?)\1\]?_{0,2}")
_STRONG = re.compile(r"(?<!\w)(\*\*|__|\*)(?=\S)([^*\n]+?)(?<=\S)\1(?!\w)")
_TAG = re.compile(r"</?[A-Za-z]+(?: +[\w-]+=\"[^\"]*\")* */?>")
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?](?=\s+[A-Z`:(\[])"
)
_SIGNATURE = re.compile(r"^[\w.]+\s?\(.*\)(\s*->.*)?$|^[\w.]+\s?\([^)]*\)\s*(->|--)")
_TAIL = re.compile(r"(?:[\s,(]*\b(?:e\.g|i\.e)\b)?[\s.:;!,]*$")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")

_SAYS_NOTHING = re.compile(
    r"^(see (also|the|base|documentation|docs|:|`|\w+\.|\w+\(\))|inherited|initiali[sz]e self|"
    r"(an )?alias (for|of|to)|deprecated|todo|fixme|internal|private|same as|copied from|"
    r"this is the configuration class|docstring|not implemented|placeholder|copyright|"
    r"this (class|function|method|module) is (deprecated|internal|private)|"
    r"parameters$|args:|arguments:|returns?:|>>>)",
    re.IGNORECASE,
)


def split_docstring(docstring: str, max_characters: int) -> tuple[str, str] | None:
    """Returns (summary sentence, rest), both plain text on one line, or None if either is poor.

    Args:
        docstring: As it stands in the source.
        max_characters: The rest is cut at the last word that ends within so many characters.
    """
    query, left, paragraphs = _split_first(_paragraphs(docstring, max_characters))
    text = _cut(" ".join(part for part in (left, *paragraphs) if part), max_characters)
    return (query, text) if _is_question(query) and _says_something(text) else None


def summary_of(docstring: str) -> str | None:
    """Returns the summary sentence alone, or None if it is poor.

    Args:
        docstring: As it stands in the source.
    """
    query, _, _ = _split_first(_paragraphs(docstring, 0))
    return query if _is_question(query) else None


def _split_first(paragraphs: list[str]) -> tuple[str, str, list[str]]:
    """Returns the first sentence, what is left of its paragraph, and the paragraphs after it."""
    if paragraphs and _SIGNATURE.match(paragraphs[0]):
        paragraphs = paragraphs[1:]
    first = paragraphs[0] if paragraphs else ""
    end = _SENTENCE_END.search(first)
    query, left = (first[: end.start()], first[end.end() :]) if end else (first, "")
    return _TAIL.sub("", query.strip()), left.strip(), paragraphs[1:]


def sentences(text: str) -> list[str]:
    """The sentences of a plain text that could be typed as a query, in their order."""
    found = (_TAIL.sub("", part.strip()) for part in _SENTENCE_END.split(text))
    return [sentence for sentence in found if _is_question(sentence)]


def _paragraphs(docstring: str, max_characters: int) -> list[str]:
    """Returns the docstring's paragraphs as plain text, without examples, rules and directives.

    Those that can no longer matter, after enough text for a query and its answer, are left out.
    """
    paragraphs: list[list[str]] = [[]]
    in_example = in_fence = False
    for line in inspect.cleandoc(docstring).splitlines():
        if _FENCE.match(line):
            in_fence = not in_fence
            continue
        if not line.strip():
            in_example = False
            paragraphs.append([])
            continue
        in_example = in_example or line.lstrip().startswith((">>>", "In ["))
        if in_example or in_fence or _UNDERLINE.match(line) or _DIRECTIVE.match(line):
            continue
        paragraphs[-1].append(line)
    texts: list[str] = []
    for lines in paragraphs:
        text = _plain(" ".join(lines)) if lines else ""
        if any(character.isalnum() for character in text):
            texts.append(text)
        # The first two may be a signature and the summary.
        if sum(map(len, texts[2:])) > max_characters:
            break
    return texts


def _plain(text: str) -> str:
    text = _ROLE.sub(r"\1", _FIELD_NOISE.sub("", text))
    text = _LINK.sub(lambda match: match[1] or match[2], text)
    text = _TICKS.sub(r"\2", text)
    text = _STRONG.sub(r"\2", text)
    text = _TAG.sub(" ", text).replace("::", ":")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def _cut(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    return text[: max_characters + 1].rsplit(" ", 1)[0][:max_characters].rstrip(" ,;:")


def _is_question(query: str) -> bool:
    words = _WORD.findall(query)
    return (
        len(words) >= MIN_QUERY_WORDS
        and MIN_QUERY_WORDS <= len(query.split()) <= MAX_QUERY_WORDS
        and len(query) <= MAX_QUERY_CHARACTERS
        and not _SAYS_NOTHING.match(query)
        and sum(map(len, words)) >= 0.6 * len(query.replace(" ", ""))
    )


def _says_something(text: str) -> bool:
    return len(_WORD.findall(text)) >= MIN_TEXT_WORDS
