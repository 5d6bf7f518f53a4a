"""An endpoint recording, killed and run again: each row once, the budget kept, the key nowhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the `endpoint` extra is not installed")


from .endpoint_rows import FAULTS, SECRET, recorded, spellings
from .fault_server import (
    Reply,
    serving,
)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    return SECRET


CHILD = """
import sys
from pathlib import Path
from paredown.distill.endpoint import Request, record_answers
from paredown.distill.endpoint_settings import EndpointSettings
url, folder, rows, concurrency, budget = sys.argv[1:]
settings = EndpointSettings(
    url, "tiny", key_env="TEACHER_KEY", concurrency=int(concurrency), first_wait_s=0.001,
    timeout_s=20, max_tokens=3, budget_requests=int(budget),
)
def row(n):
    return Request(f"row-{n}", [{"role": "user", "content": f"ask {n}"}])
requests = map(row, range(int(rows)))
print(record_answers(requests, settings, Path(folder), lambda done: print(done)))
"""


@pytest.mark.slow
def test_2000_rows_killed_three_times_are_each_recorded_once(tmp_path: Path, secret: str) -> None:
    total, concurrency, kills = 2000, 16, [400, 900, 1500]
    folder = tmp_path / "runs" / "answers"
    faults = [FAULTS[name] for name in FAULTS if name != "no answer"]
    asked_before: list[Counter[str]] = []
    failed: Counter[str] = Counter()

    def faulty(number: int, body: dict[str, Any]) -> Reply | None:
        if number % 50 == 25:  # 2 % of the requests
            failed[body["messages"][-1]["content"]] += 1
            return faults[number // 50 % len(faults)]()
        return None

    with serving(faulty) as server, (tmp_path / "output").open("wb") as output:
        command = [sys.executable, "-c", CHILD, server.url, str(folder), str(total)]

        def start(budget: int) -> subprocess.Popen[bytes]:
            words = [*command, str(concurrency), str(budget)]
            return subprocess.Popen(words, stdout=output, stderr=output, env=dict(os.environ))

        for kill_at in kills:
            child = start(5000)
            while server.requests < kill_at and child.poll() is None:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            asked_before.append(Counter(server.asked))
        # the budget counts what the killed runs asked: this one is spent at once
        used = sum(1 for line in (folder / "ledger.jsonl").open() if '"most"' in line)
        assert server.requests <= used <= server.requests + 3 * concurrency
        child = start(used)
        assert child.wait() == 1
        assert server.requests == sum(asked_before[-1].values())
        child = start(5000)
        assert child.wait() == 0, (tmp_path / "output").read_text()[-2000:]

    assert recorded(folder) == {f"row-{n}": 1 for n in range(total)}
    again = server.asked - Counter({f"ask {n}": 1 for n in range(total)}) - failed
    assert sum(again.values()) <= len(kills) * concurrency
    summary = json.loads((folder / "summary.json").read_text())
    assert server.requests <= summary["requests"] <= server.requests + len(kills) * concurrency
    assert set(server.keys) == {f"Bearer {secret}"}
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        text = path.read_text()
        assert not [spelling for spelling in spellings() if spelling in text], path
