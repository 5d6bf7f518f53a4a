"""A report of a classifier with every key filled, as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .report_searches import search

CLASSES = (
    "card_arrival", "lost_card", "exchange_rate", "top_up_failed", "pin_blocked", "refund",
    "age_limit", "transfer_fee", "cash_withdrawal", "identity", "country_support", "card_swallowed",
    "virtual_card", "beneficiary", "top_up_limit", "pending_payment", "wrong_amount", "apple_pay",
)  # fmt: skip


def _slice(place: int, name: str) -> dict[str, Any]:
    lost = 0.03 - 0.012 * place
    ends = [-lost - 0.06, -lost + 0.05]
    return {
        "by": "label", "name": name, "rows": 40 + place, "teacher": 0.95, "student": 0.95 - lost,
        "difference": -lost, "difference_ci95": ends, "p": min(1.0, 0.2 + 0.1 * place),
    }  # fmt: skip


def _step(name: str, before: str | None, value: float, change: float, ms: float) -> dict[str, Any]:
    return {
        "name": name, "stage": name.replace(" ", "-"), "before": before, "value": value,
        "difference": change if before else None,
        "difference_ci95": [change - 0.006, change + 0.005] if before else None,
        "p": 0.0004 if abs(change) > 0.05 else 0.41 if before else None,
        "retention": value / 0.9251,
        "retention_ci95": [value / 0.9251 - 0.008, value / 0.9251 + 0.008],
        "flops_per_example": 612e6 if "teacher" in name else 99e6,
        "bytes": 90868376 if "teacher" in name else 27868376, "latency_ms_p50": ms,
    }  # fmt: skip


def _calibration(side: str, sure: float, shift: float | None) -> dict[str, Any]:
    bins = []
    for place in range(10):
        confidence = (place + 0.5) / 10
        rows = 0 if place < 2 else 20 + 2 ** (place + 1)
        known = confidence if rows else None
        right = min(1.0, confidence - sure * math.sin(math.pi * confidence)) if rows else None
        low, high = place / 10, (place + 1) / 10
        entry = {"low": low, "high": high, "rows": rows, "confidence": known, "accuracy": right}
        bins.append(entry)
    return {"side": side, "ece": sure / 2, "bins": bins, "shift": shift}


def _risk(side: str, worst: float, outside: bool) -> dict[str, Any]:
    coverage = [1 - i / 300 for i in range(290)]
    return {
        "side": side,
        "threshold": [0.2 + 0.8 * i / 300 for i in range(290)],
        "coverage": coverage,
        "risk": [worst * c**2 for c in coverage],
        "aurc": worst / 3,
        "out_of_scope": [0.9 * c**3 for c in coverage] if outside else None,
    }


def _timing(side: str, runtime: str, precision: str, p50: float, **rest: Any) -> dict[str, Any]:
    return {
        "side": side, "runtime": runtime, "precision": precision, "threads": 1, "batch": 1,
        "scenario": "single_stream", "p50": p50, "p90": 1.1 * p50, "p95": 1.2 * p50,
        "p99": 1.5 * p50, "model_p50": 0.9 * p50, "examples_per_s": 1000 / p50,
        "peak_memory_bytes": 412e6, "cold_start_s": 0.8, "energy_joules": None,
        "energy_source": None, **rest,
    }  # fmt: skip


DIFFERING = [
    ("When will my new card be here?", "card_arrival", "card_arrival", "lost_card"),
    ("The machine ate my card", "card_swallowed", "lost_card", "card_swallowed"),
    ("why is the fee so high", "transfer_fee", "exchange_rate", "refund"),
    ("Can my son have an account? He is 12.", "age_limit", "age_limit", "identity"),
    ("<b>bold</b> & <script>alert(1)</script>", "refund", "refund", "identity"),
]


def full_report(make_report: Callable[..., dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Every key filled; keywords replace arguments of `build_report`."""
    parts = make_report()
    recipe = {**parts["recipe"], "name": "query_intent", "task": "classification"}
    recipe["target"] = {"metric": "accuracy", "retain": 0.97, "compute": 0.2}
    quality = {
        "metric": "accuracy", "teacher": 0.9251, "student": 0.9139, "retention": 0.9879,
        "retention_ci95": [0.9781, 0.9969], "retention_std_seeds": 0.0021, "examples": 3080,
        "agreement": 0.934,
        "metrics": {
            "accuracy": {"teacher": 0.9251, "student": 0.9139},
            "macro_f1": {"teacher": 0.9248, "student": 0.9127},
        },
        "baselines": [
            {"name": "as cut, before distillation", "value": 0.73, "retention": 0.789,
             "retention_ci95": [0.77, 0.81], "flops_ratio": 0.162},
            {"name": "same shape, trained on labels only", "value": 0.891, "retention": 0.963,
             "retention_ci95": [0.951, 0.975], "flops_ratio": 0.162},
            {"name": "TF-IDF and logistic regression", "value": 0.862, "retention": 0.932,
             "retention_ci95": [0.918, 0.945], "flops_ratio": 0.0004},
        ],
        "seeds": [{"seed": i, "student": 0.914 + 0.001 * i, "retention": 0.988} for i in range(3)],
        "slices": [_slice(place, name) for place, name in enumerate(CLASSES)],
    }  # fmt: skip
    shown = [
        {"text": text, "expected": expected, "teacher": teacher, "student": student,
         "teacher_right": teacher == expected, "student_right": student == expected}
        for text, expected, teacher, student in DIFFERING
    ]  # fmt: skip
    spent = {"flops": 3.1e14, "energy_joules": None, "usd": 0.012}
    given: dict[str, Any] = {
        "recipe": recipe,
        "command": "paredown run query_intent seeds=3",
        "quality": quality,
        "exports": [
            {"format": "onnx", "bytes": 27900000, "metric": 0.9139, "retention": 0.9879,
             "retention_ci95": [0.9781, 0.9969], "flip_rate": 0.0, "latency_ms_p50": 1.1},
            {"format": "onnx-int8", "bytes": 7100000, "metric": 0.911, "retention": 0.9848,
             "retention_ci95": [0.975, 0.9941], "flip_rate": 0.0123, "latency_ms_p50": 0.59},
        ],
        "measurements": [
            _timing("teacher", "pytorch", "fp32", 7.81),
            _timing("student", "pytorch", "fp32", 1.9),
            _timing("student", "onnxruntime", "int8", 0.59),
            {"side": "teacher", "runtime": "pytorch", "precision": "fp32", "threads": 1,
             "batch": 32, "scenario": "offline", "examples_per_s": 160.0, "usd_per_million": 0.07},
            {"side": "student", "runtime": "onnxruntime", "precision": "int8", "threads": 1,
             "batch": 32, "scenario": "offline", "examples_per_s": 1522.0,
             "usd_per_million": 0.007},
            _timing("student", "onnxruntime", "int8", 0.7, scenario="server", rate_per_s=640.0,
                    bound_ms=5.0),
        ],
        "differing": shown,
        "search": search(),
        "judged": {
            "attribution": [
                _step("teacher", None, 0.9251, 0.0, 7.8),
                _step("cut", "teacher", 0.73, -0.1951, 1.9),
                _step("student", "cut", 0.9139, 0.1839, 1.9),
                _step("onnx", "student", 0.9139, 0.0, 1.1),
                _step("onnx-int8", "student", 0.911, -0.0029, 0.59),
            ],
            "significance": {"both": 2744, "teacher_alone": 105, "student_alone": 71,
                             "neither": 160, "p": 0.0124},
            "calibration": [
                _calibration("teacher", 0.08, None),
                _calibration("student", 0.05, None),
                _calibration("onnx-int8", 0.06, -0.004),
            ],
            "risk_coverage": [_risk("teacher", 0.075, True), _risk("student", 0.086, True)],
        },
        "ledger": {
            "stages": [{"name": "teacher", "seconds": 310.0, **spent},
                       {"name": "distill", "seconds": 421.5, **spent}],
            "total": {"name": "total", "seconds": 731.5, "flops": 6.2e14, "energy_joules": None,
                      "usd": 0.024},
            "endpoint_usd": None, "teacher": 7.0e-8, "student": 7.0e-9, "break_even": 380953,
            "reason": "",
        },
    }  # fmt: skip
    return make_report(**{**given, **changes})
