// Resumable uploads by tus from [data-upload]: several files, progress, pause, resume, retry.
import { size } from "./sizes.js";

const RETRIES = [0, 1000, 3000, 5000, 10_000, 20_000];

class Sending {
  constructor(root, file) {
    this.root = root;
    this.file = file;
    this.running = false;
    this.build();
    this.upload = new tus.Upload(file, {
      endpoint: root.dataset.endpoint,
      headers: { "X-CSRF-Token": document.body.dataset.csrf },
      metadata: { ...JSON.parse(root.dataset.metadata), filename: file.name, filetype: file.type },
      chunkSize: 32 * 1024 * 1024,
      retryDelays: RETRIES,
      removeFingerprintOnSuccess: true,
      onError: (error) => this.failed(error),
      onProgress: (sent, total) => this.progress(sent, total),
      onSuccess: () => this.done(),
    });
  }

  build() {
    this.item = document.createElement("li");
    const head = document.createElement("div");
    head.className = "row-f";
    const name = document.createElement("b");
    name.textContent = this.file.name;
    this.words = document.createElement("span");
    this.words.className = "small muted";
    this.words.textContent = size(this.file.size);
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.className = "btn btn-sm push";
    this.button.textContent = "Pause";
    this.button.addEventListener("click", () => (this.running ? this.pause() : this.start()));
    head.append(name, this.words, this.button);
    this.bar = document.createElement("progress");
    this.bar.className = "pg";
    this.bar.max = 1;
    this.bar.value = 0;
    this.bar.setAttribute("aria-label", `Sending ${this.file.name}`);
    this.status = document.createElement("div");
    this.status.className = "visually-hidden";
    this.status.setAttribute("role", "status");
    this.item.append(head, this.bar, this.status);
    this.root.querySelector("[data-files]").append(this.item);
  }

  async begin() {
    // The fingerprint of the file lies in localStorage: the same file goes on where it stopped.
    const before = await this.upload.findPreviousUploads();
    if (before.length) {
      this.upload.resumeFromPreviousUpload(before[0]);
      this.say("Goes on where it stopped");
    }
    this.start();
  }

  start() {
    this.running = true;
    this.from = null;
    this.button.textContent = "Pause";
    this.upload.start();
  }

  async pause() {
    this.running = false;
    this.button.textContent = "Go on";
    await this.upload.abort();
    this.say("Paused");
  }

  progress(sent, total) {
    this.bar.max = total || 1;
    this.bar.value = sent;
    const percent = total ? Math.floor((100 * sent) / total) : 100;
    this.words.textContent = `${size(sent)} of ${size(total)}${this.speed(sent, total)}`;
    this.hideTwin();
    if (percent - (this.told ?? -10) >= 10) {
      this.told = percent;
      this.status.textContent = `${this.file.name}: ${percent} percent`;
    }
  }

  /** Words for the mean speed since the last start, and the time left at it. */
  speed(sent, total) {
    this.from ??= { sent, at: performance.now() };
    const seconds = (performance.now() - this.from.at) / 1000;
    const rate = (sent - this.from.sent) / seconds;
    if (seconds < 2 || !(rate > 0)) return "";
    const left = Math.ceil((total - sent) / rate);
    const words = left < 90 ? `${left} s` : `${Math.round(left / 60)} min`;
    return `, ${size(rate)}/s, about ${words} left`;
  }

  get key() {
    return this.upload.url?.split("/").pop() ?? "";
  }

  /** The page's own list shows what the server holds: one row a file, ours while it is sent. */
  hideTwin() {
    const twin = this.key && document.querySelector(`[data-upload-row="${CSS.escape(this.key)}"]`);
    if (twin) twin.hidden = !this.finished;
  }

  say(text) {
    this.words.textContent = text;
    this.status.textContent = `${this.file.name}: ${text}`;
  }

  failed(error) {
    this.running = false;
    this.button.textContent = "Try again";
    const response = error.originalResponse;
    let reason = "the connection was lost";
    if (response) {
      try {
        reason = JSON.parse(response.getBody()).message;
      } catch {
        reason = `the server answered ${response.getStatus()}`;
      }
    }
    this.say(`Stopped: ${reason}`);
  }

  done() {
    this.running = false;
    this.finished = true;
    this.button.remove();
    this.say(`${size(this.file.size)}, complete`);
    this.root.dispatchEvent(new CustomEvent("uploaded", { bubbles: true, detail: { url: this.upload.url } }));
  }
}

const sendings = new Map();

// A list fetched anew: rows of files in hand hide again, and what the list shows as stored leaves ours.
document.addEventListener("htmx:after:swap", () => {
  for (const sending of [...sendings.values()].flat()) {
    sending.hideTwin();
    if (sending.finished && document.querySelector(`[data-upload-key="${CSS.escape(sending.key)}"]`)) sending.item.remove();
  }
});

function take(root, files) {
  const list = sendings.get(root) ?? [];
  sendings.set(root, list);
  for (const file of files) {
    const sending = new Sending(root, file);
    list.push(sending);
    sending.begin();
  }
}

function takeFrom(input) {
  take(input.closest("[data-upload]"), input.files);
  input.value = "";
}

// Files that were chosen before this script ran told nobody.
for (const input of document.querySelectorAll("[data-upload] input[type=file]")) takeFrom(input);
document.addEventListener("change", (event) => {
  if (event.target.type === "file" && event.target.closest("[data-upload]")) takeFrom(event.target);
});
document.addEventListener("uploaded", (event) => {
  const root = event.target.closest("[data-upload]");
  if (root.dataset.done && sendings.get(root).every((s) => s.finished)) location.assign(root.dataset.done);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const drop = event.target.closest?.("[data-drop]");
    if (!drop) return;
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(drop.closest("[data-upload]"), event.dataTransfer.files);
  });
}
addEventListener("beforeunload", (event) => {
  const open = [...sendings.values()].flat().some((s) => s.running);
  if (open) event.preventDefault();
});
