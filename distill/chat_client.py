"""One request to a chat server: what is sent, and its answer, or why there is none, as a value.

Errors of the client are turned into values here, so that none is raised that could hold the key.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

from .chat_answers import Answer, WrongShape, parse_answer
from .endpoint_settings import EndpointSettings, Key
from .retries import Failure, server_message, status_failure


@dataclass(frozen=True)
class Request:
    """One row to ask for.

    Attributes:
        key: Names the row; distinct.
        messages: The chat so far, ``{"role": …, "content": …}`` each.
    """

    key: str
    messages: Sequence[Mapping[str, Any]]


class ChatClient:
    """A chat server and its key; closed at the end of an ``async with`` block."""

    def __init__(self, settings: EndpointSettings, key: Key | None) -> None:
        """Makes the client; nothing is sent.

        Args:
            settings: The server, and how it is asked.
            key: Its key, if it needs one.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self.settings, self.key = settings, key
        client = AsyncOpenAI(
            api_key=key.reveal() if key else "none-needed",
            base_url=settings.base_url,
            max_retries=0,  # its own retries would be in no ledger
            timeout=settings.timeout_s,
            # a redirect could carry the key to another host
            http_client=DefaultAsyncHttpxClient(follow_redirects=False, timeout=settings.timeout_s),
        )
        # taken from the environment otherwise, and of no concern to another server
        client.organization = client.project = None
        self._client = client

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def send(self, request: Request) -> Answer | Failure:
        """Sends a request; its answer, or why there is none."""
        import openai

        url, again = self.settings.base_url, {"again": True, "billed": True}
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                reply = await self._client.chat.completions.with_raw_response.create(
                    model=self.settings.model,
                    messages=cast(Any, list(request.messages)),
                    extra_body=self.settings.body(),
                )
            response = reply.http_response
        except openai.APIStatusError as error:
            response = error.response
        except (openai.APITimeoutError, TimeoutError):
            return Failure(f"{url} gave no answer in {self.settings.timeout_s:g} s", **again)
        except openai.APIConnectionError as error:
            why = self._redact(str(error.__cause__ or error)) or "the connection was closed"
            return Failure(f"{url} cannot be reached, or broke off ({why})", **again)
        except openai.OpenAIError as error:
            return Failure(f"{url}: {self._redact(str(error))}", again=False)
        except UnicodeEncodeError:
            return Failure("its messages hold half a surrogate pair, which is no text", again=False)
        body = self._redact(response.text)
        if not 200 <= response.status_code < 300:
            return status_failure(
                response.status_code,
                response.headers,
                self._plain(body),
                url=url,
                key_env=self.settings.key_env,
                asks_logprobs=bool(self.settings.top_logprobs),
            )
        try:
            answer = parse_answer(request.key, body)
        except WrongShape as error:
            said = server_message(self._plain(body)) if '"error"' in body else ""
            return Failure(f"{error}{': ' + said if said else ''}", shape=True, **again)
        return self._without_logprobs(answer) or answer

    def _redact(self, text: str) -> str:
        return self.key.redact(text) if self.key else text

    def _plain(self, body: str) -> str:
        """A body in JSON's plainest spelling: a server's own escapes must not hide the key."""
        try:
            return self._redact(json.dumps(json.loads(body), ensure_ascii=False))
        except ValueError:
            return body

    def _without_logprobs(self, answer: Answer) -> Failure | None:
        """The failure of an answer that lacks the log-probabilities asked for."""
        if not self.settings.top_logprobs or not answer.text:
            return None
        if answer.tokens and any(len(token) > 1 for token in answer.tokens):
            return None
        given = "those of the chosen tokens alone" if answer.tokens else "none"
        return Failure(
            f"{self.settings.base_url} was asked for the {self.settings.top_logprobs} largest "
            f"log-probabilities of each token and gave {given}. Choose a server that gives them "
            "(vLLM, OpenAI), or set teacher.endpoint.top_logprobs: 0 to record texts alone, for "
            "a loss that "
            "needs no more.",
            again=False,
            billed=True,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        )
