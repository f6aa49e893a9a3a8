"""
A real smoltrace evaluation whose test work is a stub. Run as a program.

::

    smoltrace_run.py evaluate ANSWER.json [RUN_ID ...]            without us
    smoltrace_run.py registered DATASET ANSWER.json [RUN_ID ...]  with hubmeter.smoltrace.register
    smoltrace_run.py command ARGS...                              python -m hubmeter.smoltrace

Everything else is smoltrace's and genai_otel's own: providers, exporters, GPU collector.
"""

import json
import logging
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import smoltrace.core
from opentelemetry import metrics

COLLECTIONS = 3
"""How often the stub lets the provider collect; smoltrace itself asks once more."""

SECONDS_BETWEEN_COLLECTIONS = 0.6

RUN_ID = "11111111-2222-3333-4444-555555555555"
TASKS = [{"id": "one", "difficulty": "easy"}, {"id": "two", "difficulty": "easy"}]


def stub_the_test_work() -> None:
    """No tasks from the Hub, no model, no agent."""
    core: Any = smoltrace.core
    core.load_test_cases_from_hf = lambda *_, **__: TASKS
    core._initialize_model = lambda *_, **__: None
    core._run_agent_tests = _pretend_to_test


def _pretend_to_test(agent_type: str, *args: Any, **_: Any) -> list[dict[str, Any]]:
    tracer = args[6]
    results = []
    for task in TASKS:
        with tracer.start_as_current_span("task") as span:
            span.set_attributes({"test.id": task["id"], "agent.type": agent_type})
            results.append(_result(agent_type, task))
    provider: Any = metrics.get_meter_provider()
    for _collection in range(COLLECTIONS):
        time.sleep(SECONDS_BETWEEN_COLLECTIONS)
        provider.force_flush()
    return results


def _result(agent_type: str, task: dict[str, Any]) -> dict[str, Any]:
    return {
        "agent_type": agent_type,
        "test_id": task["id"],
        "difficulty": task["difficulty"],
        "prompt": "",
        "success": True,
        "tool_called": True,
        "correct_tool": True,
        "final_answer_called": True,
        "response_correct": True,
        "tools_used": [],
        "steps": 1,
        "response": "",
    }


def evaluate(run_id: str) -> dict[str, Any]:
    """One evaluation; what smoltrace returns from it."""
    results, traces, metric_data, _, _ = smoltrace.core.run_evaluation(
        model_name="stub",
        agent_types=["tool"],
        test_subset=None,
        dataset_name="none",
        split="train",
        enable_otel=True,
        verbose=False,
        debug=False,
        run_id=run_id,
        enable_gpu_metrics=True,
    )
    return {"results": results, "traces": traces, "metric_data": metric_data}


def evaluate_all(answer: str, *run_ids: str) -> None:
    answers = [evaluate(run_id) for run_id in run_ids or [RUN_ID]]
    Path(answer).write_text(json.dumps(answers, default=str), encoding="utf-8")


def evaluate_registered(dataset: str, answer: str, *run_ids: str) -> None:
    import hubmeter.smoltrace

    # Collected when smoltrace asks for it, and as the process ends; never by the clock.
    registration = hubmeter.smoltrace.register(dataset, export_interval_s=3600)
    assert hubmeter.smoltrace.register(dataset, export_interval_s=3600) is registration
    evaluate_all(answer, *run_ids)
    assert len(registration.exporters) == max(1, len(run_ids))
    assert registration.exporters[0].table().num_rows


def run_command(*arguments: str) -> None:
    sys.argv = ["hubmeter.smoltrace", *arguments]
    runpy.run_module("hubmeter.smoltrace", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    stub_the_test_work()
    modes = {
        "evaluate": evaluate_all,
        "registered": evaluate_registered,
        "command": run_command,
    }
    modes[sys.argv[1]](*sys.argv[2:])
