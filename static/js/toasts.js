// Messages at the bottom right: 6 seconds; errors stay until closed. Text only, never markup.
const SECONDS = 6;

export function toast({ kind = "", title = "", text = "", request = "" }) {
  const region = document.getElementById("toasts");
  if (!region) return;
  const note = document.createElement("div");
  note.className = kind ? `note note-${kind}` : "note";
  const body = document.createElement("div");
  body.className = "grow";
  const head = document.createElement("b");
  head.textContent = title;
  body.append(head, ` ${text}`);
  if (request) {
    const id = document.createElement("div");
    id.className = "small muted";
    id.textContent = `Request ${request}`;
    body.append(id);
  }
  const close = document.createElement("button");
  close.type = "button";
  close.className = "btn btn-sm";
  close.textContent = "Close";
  close.addEventListener("click", () => note.remove());
  note.append(body, close);
  region.append(note);
  if (kind !== "bad") setTimeout(() => note.remove(), SECONDS * 1000);
}
