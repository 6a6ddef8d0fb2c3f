"""GENERATE as a person asks for it: prompts in, an upload of answers out that an import takes."""

import base64
import json
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from app.web.deps import Services
from tests.support.workers import carry_out_here
from tests.workers.distill.tiny import llama, tokenizer
from workers.distill.checkpoints import save_checkpoint

BASE = "/api/v1/projects/tickets"
PROMPTS = [
    {"messages": [{"role": "user", "content": f"ticket {n}"}], "metadata": {"n": n}}
    for n in range(5)
]


def send(client: TestClient, content: bytes) -> int:
    """Upload a file by tus in one piece; return its id."""
    name = base64.b64encode(b"prompts.jsonl").decode()
    headers = {"Upload-Length": str(len(content)), "Upload-Metadata": f"filename {name}"}
    place = client.post(f"{BASE}/uploads", headers=headers).headers["location"]
    patch = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert client.patch(place, content=content, headers=patch).status_code == 204
    found: dict[str, Any] = client.get(place).json()
    return int(found["id"])


def upload(client: TestClient, upload_id: int) -> dict[str, Any]:
    return next(u for u in client.get(f"{BASE}/uploads").json() if u["id"] == upload_id)


def test_a_checkpoint_answers_prompts_and_the_answers_can_be_imported(
    api_client: TestClient, parts: Services, tmp_path: Path
) -> None:
    save_checkpoint(llama(tied=False), tokenizer(), tmp_path / "teacher")
    api_client.post("/api/v1/projects", json={"name": "Tickets"})
    source = {"kind": "folder", "path": str(tmp_path / "teacher")}
    api_client.post(f"{BASE}/checkpoints", json={"name": "teacher", "source": source})
    content = b"".join(json.dumps(p).encode() + b"\n" for p in PROMPTS)
    body: dict[str, Any] = {"checkpoint": "teacher", "prompts_upload_id": send(api_client, content)}
    assert api_client.post(f"{BASE}/generations", json=body).status_code == 409, "not ready yet"
    carry_out_here(parts.sessions, parts.settings)

    asked = api_client.post(f"{BASE}/generations", json={**body, "max_new_tokens": 4})
    assert asked.status_code == 202, asked.text
    assert (asked.json()["state"], asked.json()["job_id"] is None) == ("uploading", False)
    waiting = {"dataset": "traffic", "upload_ids": [asked.json()["id"]]}
    assert api_client.post(f"{BASE}/imports", json=waiting).status_code == 409
    carry_out_here(parts.sessions, parts.settings)

    made = upload(api_client, asked.json()["id"])
    assert (made["state"], made["filename"]) == ("inspected", "prompts-answers.jsonl")
    assert made["report"]["format"] == "openai_chat"
    assert made["report"]["models"] == {"teacher": len(PROMPTS)}
    assert api_client.post(f"{BASE}/imports", json=waiting).status_code == 202
    carry_out_here(parts.sessions, parts.settings)
    funnel = api_client.get(f"{BASE}/versions").json()[0]["funnel"]
    assert (funnel["records"], funnel["calls"]) == (len(PROMPTS), len(PROMPTS))


def test_what_cannot_be_answered_is_refused(api_client: TestClient) -> None:
    api_client.post("/api/v1/projects", json={"name": "Tickets"})
    body = {"checkpoint": "nobody", "prompts_upload_id": 1}
    nobody = api_client.post(f"{BASE}/generations", json=body)
    assert (nobody.status_code, "nobody" in nobody.json()["message"]) == (404, True)
    asked = api_client.post(f"{BASE}/generations", json={**body, "temperature": -1})
    assert asked.status_code == 422
