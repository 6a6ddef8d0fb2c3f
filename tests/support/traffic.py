"""A small made production log: tickets a model answered, every third with its truth, some dirt."""

import json
from pathlib import Path

from app.demo.tickets import made_tickets

REFERENCE_PATH = "metadata.reference"


def write_log(path: Path, conversations: int) -> None:
    """Write OpenAI chat lines in order, then a line cut off and a repeated one."""
    lines = []
    for n, conversation in enumerate(made_tickets(conversations, seed=3)):
        system, user, answer = conversation.messages
        asked = [{"role": m.role, "content": m.content} for m in (system, user)]
        said = {"role": "assistant", "content": answer.content}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        record: dict[str, object] = {
            "request": {"model": "teacher", "messages": asked},
            "response": {"model": "teacher", "choices": [choice]},
        }
        if n % 3 == 0:
            record["metadata"] = {"reference": answer.reference}
        lines.append(json.dumps(record))
    lines += ["{cut off", lines[0]]
    path.write_text("\n".join(lines) + "\n")
