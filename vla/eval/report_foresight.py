# SPDX-License-Identifier: Apache-2.0
"""The section of a report about what a policy expects: predicted and true pictures, plan, confidence."""

from html import escape
from typing import Any

from vla.eval.report_charts import Line, line_chart
from vla.eval.report_sections import Run

COLUMNS = (("now", "seen"), ("predicted", "expected"), ("true", "what came"))


def foresight(run: Run) -> str:
    """One card an episode: a row a decision, then how sure it was over time."""
    episodes = run.foresight or []
    if not episodes:
        return ""
    cards = "".join(_episode(episode) for episode in episodes)
    return (
        "<section><h2>What it expects</h2><p>At each decision it also says what it was trained to say: its plan, and "
        "the picture after the chunk. Each chunk is executed to its end, so that the picture can be held against the "
        "one that came.</p>"
        f'<div class="grid expects">{cards}</div></section>'
    )


def _episode(episode: dict[str, Any]) -> str:
    rows = []
    for decision in episode["decisions"]:
        pictures = "".join(
            f'<figure><img alt="{name}" src="data:image/png;base64,{decision["pictures"][key]}">'
            f"<figcaption>{name}</figcaption></figure>"
            for key, name in COLUMNS
            if key in decision["pictures"]
        )
        plan = ""
        if "plan" in decision:
            text = escape(decision["plan"]) or "<em>nothing left to plan</em>"
            plan = f'<div class="told">{text}<span class="num">sure: {decision["plan_confidence"]:.2f}</span></div>'
        errors = ""
        if "error" in decision:
            errors = (
                f'<div class="num">squared error {decision["error"]:.0f}, of the picture before it '
                f"{decision['error_of_now']:.0f}</div>"
            )
        rows.append(
            f'<div class="foresight"><div class="num">step {decision["step"]}</div>'
            f'<div class="trio">{pictures}</div>{plan}{errors}</div>'
        )
    sure = [
        (decision["step"] + i, value)
        for decision in episode["decisions"]
        for i, value in enumerate(decision["confidence"])
    ]
    chart = line_chart([Line("", sure, "var(--accent)")], zero=True) if sure else ""
    outcome = "success" if episode["success"] else "failure"
    return (
        f'<div class="card chart"><h3>{escape(episode["instruction"])}<span class="num">{escape(episode["task"])}, '
        f"seed {episode['seed']}: {outcome}</span></h3>{''.join(rows)}<h3>How sure it is of each action"
        f"<span>the least sure dimension, over steps</span></h3>{chart}</div>"
    )
