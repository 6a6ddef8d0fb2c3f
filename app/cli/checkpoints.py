"""`stillhouse checkpoints`: register, prune, list and remove checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import lookup
from app.cli.connect import connected
from app.cli.options import Home, Project, Wait
from app.cli.output import CommandFailed, Json, WrongUse, console, print_json, print_table
from app.cli.progress import follow_job, send_file
from app.client.rest import Api
from app.client.uploads import UploadDamaged
from app.metrics.formatting import DASH, number, size

app = typer.Typer(no_args_is_help=True, help="Register, prune, list and remove checkpoints.")
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="STILLHOUSE_SERVER_KEY",
        help="Key of a server. Better in the variable: options are seen by all of the machine.",
    ),
]
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Served:
    """What belongs to a server's URL."""

    model: str | None
    tokenizer: str | None
    at_once: int | None

    def source(self, url: str) -> dict[str, Any]:
        """Return the server as the API takes it. Raises WrongUse."""
        if self.model is None:
            raise WrongUse("A server needs --model: the name it serves the checkpoint under.")
        found: dict[str, Any] = {"kind": "endpoint", "base_url": url, "model": self.model}
        if self.tokenizer is not None:
            found["tokenizer"] = source_of(self.tokenizer)
        return found if self.at_once is None else found | {"at_once": self.at_once}

    @property
    def given(self) -> bool:
        return (self.model, self.tokenizer, self.at_once) != (None, None, None)


def source_of(text: str) -> dict[str, str]:
    """Return a folder, a .gguf file or a hub repository as the API takes it. Raises WrongUse."""
    path = Path(text).expanduser()
    if path.exists():
        return {"kind": "folder", "path": str(path.absolute())}
    found = HUB_ID.fullmatch(text)
    if found is None or text.startswith((".", "/", "~")) or text.endswith(".gguf"):
        raise WrongUse(
            f"{text} is neither a folder, a .gguf file, nor a hub id such as org/name@revision."
        )
    return {"kind": "hub", "repo_id": found["repo"], "revision": found["revision"] or "main"}


@app.command()
def add(  # noqa: PLR0913, PLR0917 - what belongs to each kind of source
    name: Annotated[str, typer.Argument(help="What the project calls it.")],
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a .gguf file, org/name[@revision], or a server's http(s)://…/v1."
        ),
    ],
    project: Project,
    model: Annotated[
        str | None, typer.Option(help="Of a server: the name it serves the checkpoint under.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Of a server: folder or org/name[@revision] of the served model's tokenizer; "
            "without it the server is asked for text only."
        ),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, max=256, help="Of a server: requests at once; 8 if none.")
    ] = None,
    api_key: ApiKey = None,
    token: Annotated[
        str | None,
        typer.Option("--hub-token", envvar="HF_TOKEN", help="For hub repositories that ask."),
    ] = None,
    home: Home = None,
    *,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Register a checkpoint: a job copies (or downloads) and reads it, or asks its server."""
    served, url = Served(model, tokenizer, at_once), source.startswith(("http://", "https://"))
    body: dict[str, Any] = {"name": name, "token": token}
    with connected(home) as api:
        slug = lookup.project_slug(api, project)
        if served.given and not url:
            words = "--model, --tokenizer and --at-once belong to a server"
            raise WrongUse(f"{words}; {source} is none.")
        body["source"] = served.source(source) if url else source_of(source)
        if url and api_key:
            body["api_key"] = api_key
        finish(api, slug, api.post(f"/projects/{slug}/checkpoints", body), wait, as_json=as_json)


@app.command()
def prune(  # noqa: PLR0913, PLR0917 - the sizes of a student
    name: Annotated[str, typer.Argument(help="What the project calls the student.")],
    project: Project,
    teacher: Annotated[str, typer.Option(help="The checkpoint it is cut from.")],
    dataset: Annotated[
        str | None,
        typer.Option(help="NAME[@NUMBER]: conversations that rank what is kept."),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Layers kept.")] = None,
    width: Annotated[int | None, typer.Option(help="Hidden size kept.")] = None,
    ffn_width: Annotated[int | None, typer.Option(help="FFN channels kept.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads kept.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key/value heads kept.")] = None,
    home: Home = None,
    *,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Make a smaller student out of a teacher; sizes not given stay the teacher's."""
    sizes = {
        "depth": depth,
        "width": width,
        "ffn_width": ffn_width,
        "heads": heads,
        "kv_heads": kv_heads,
    }
    with connected(home) as api:
        slug = lookup.project_slug(api, project)
        body: dict[str, Any] = {
            "name": name,
            "teacher_id": lookup.checkpoint(api, slug, teacher)["id"],
            "prune": {key: value for key, value in sizes.items() if value is not None},
        }
        if dataset is not None:
            body["dataset_version_id"] = lookup.version(api, slug, dataset)["id"]
        made = api.post(f"/projects/{slug}/checkpoints/students", body)
        finish(api, slug, made, wait, as_json=as_json)


def finish(api: Api, project: str, made: dict[str, Any], wait: bool, *, as_json: bool) -> None:  # noqa: FBT001 - the option as it came
    """Wait if asked, then print the checkpoint."""
    if wait:
        follow_job(api, made["job_id"], quiet=as_json)
        made = api.get(f"/projects/{project}/checkpoints/{made['id']}")
    if as_json:
        print_json(made)
        return
    card = made["card"]
    facts = f", {number(card['parameters_total'])} parameters" if card else ""
    server = (card or {}).get("server")
    if server is not None:
        top = server["top"]
        facts = f", a server: its top {top} a token at T = 1" if top else ", a server: text only"
        facts += f" ({server['why_text_only']})" if server["why_text_only"] else ""
    sentence = f"“{made['name']}” is {made['state']}{facts} (job {made['job_id']})."
    console.print(sentence, markup=False, highlight=False)


@app.command("list")
def list_(project: Project, home: Home = None, *, as_json: Json = False) -> None:
    """List the checkpoints of a project."""
    with connected(home, reading=True) as api:
        found = api.get(f"/projects/{lookup.project_slug(api, project)}/checkpoints")
    if as_json:
        print_json(found)
        return
    headers = ("Id", "Name", "State", "Parameters", "Per token", "Layers", "Width", "Size")
    rows = [(str(c["id"]), c["name"], c["state"], *_sizes(c["card"])) for c in found]
    print_table(headers, rows, empty="No checkpoint yet: `stillhouse checkpoints add` takes one.")


@app.command()
def answer(  # noqa: PLR0913 - how answers are made
    name: Annotated[str, typer.Argument(help="Name or id of the checkpoint that answers.")],
    prompts: Annotated[
        Path, typer.Argument(help="JSONL of chat requests, or a log whose requests are asked anew.")
    ],
    project: Project,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0: greedy.")] = 0.0,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, help="Answers at once; a server has its own number.")
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="What the draws above temperature 0 are.")] = 0,
    home: Home = None,
    *,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Let a checkpoint answer prompts; the answers become an upload to import."""
    with connected(home) as api:
        if not prompts.is_file():
            raise WrongUse(f"{prompts} is not a file.")
        slug = lookup.project_slug(api, project)
        found = lookup.checkpoint(api, slug, name)
        try:
            sent = send_file(api, slug, prompts, quiet=as_json)
        except UploadDamaged as error:
            raise CommandFailed(str(error)) from error
        body = {
            "checkpoint": found["id"],
            "prompts_upload_id": sent["id"],
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "batch_size": batch_size,
            "seed": seed,
        }
        made = api.post(f"/projects/{slug}/generations", body)
        if wait:
            follow_job(api, made["job_id"], quiet=as_json)
            made = api.get(f"/projects/{slug}/uploads/{made['key']}")
    if as_json:
        print_json(made)
        return
    words = "is filled" if wait else f"is being filled (job {made['job_id']})"
    console.print(f"The upload {made['filename']} {words}.", markup=False, highlight=False)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Name or id of a checkpoint behind a server.")],
    project: Project,
    api_key: ApiKey = None,
    home: Home = None,
    *,
    forget: Annotated[bool, typer.Option("--forget", help="Keep no key from now on.")] = False,
    as_json: Json = False,
) -> None:
    """Replace the API key that later jobs send to a checkpoint's server."""
    with connected(home) as api:
        if not forget and not api_key:
            raise WrongUse("Give the key in STILLHOUSE_SERVER_KEY or --api-key, or say --forget.")
        slug = lookup.project_slug(api, project)
        found = lookup.checkpoint(api, slug, name)
        body = {"api_key": None if forget else api_key}
        found = api.put(f"/projects/{slug}/checkpoints/{found['id']}/key", body)
    if as_json:
        print_json(found)
        return
    words = "is forgotten" if forget else "is kept"
    console.print(f"The key of “{found['name']}” {words}.", markup=False, highlight=False)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name or id of a checkpoint that nothing uses.")],
    project: Project,
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """Remove a checkpoint with its files here; one that is used stays, and what uses it is told."""
    with connected(home) as api:
        slug = lookup.project_slug(api, project)
        found = lookup.checkpoint(api, slug, name)
        api.delete(f"/projects/{slug}/checkpoints/{found['id']}")
    if as_json:
        print_json(found)
        return
    console.print(f"“{found['name']}” is removed.", markup=False, highlight=False)


def _sizes(card: dict[str, Any] | None) -> tuple[str, ...]:
    if card is None:
        return (DASH,) * 5
    counts = ("parameters_total", "parameters_compute", "depth", "width")
    held = DASH if card["bytes"] is None else size(card["bytes"])
    return (*(number(card[key]) for key in counts), held)
