// Parts that follow the page's event stream: progress bars, log lines, and the "Not live" note.
import { size } from "./sizes.js";

const LOST_AFTER = 10_000;
const BACK_FOR = 6_000;
let lostTimer = null;
let lastSeen = new Date();

function payload(event) {
  try {
    return JSON.parse(event.detail.data);
  } catch {
    return null;
  }
}

function setProgress({ done, total, unit = "", eta_seconds: eta = null }) {
  for (const holder of document.querySelectorAll("[data-live-progress]")) {
    const bar = holder.querySelector("progress");
    bar.max = total || 1;
    bar.value = done;
    const number = new Intl.NumberFormat("en");
    const words = unit === "bytes" ? `${size(done)} of ${size(total)}` : `${number.format(done)} of ${number.format(total)} ${unit}`;
    const left = eta === null ? "" : `, about ${span(eta)} left`;
    holder.querySelector("[data-progress-text]").textContent = `${words}${left}`;
  }
}

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function addLine(text) {
  for (const log of document.querySelectorAll("[data-live-log]")) {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
    log.append(`${text}\n`);
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

function show(part, visible) {
  for (const element of document.querySelectorAll(`[data-live-${part}]`)) element.hidden = !visible;
}

document.addEventListener("progress", (event) => {
  const data = payload(event);
  if (data) setProgress(data);
});
document.addEventListener("log", (event) => {
  const data = payload(event);
  if (data?.text) addLine(data.text);
});
document.addEventListener("htmx:sse:after:message", () => {
  lastSeen = new Date();
});
document.addEventListener("htmx:sse:error", () => {
  lostTimer ??= setTimeout(() => {
    const at = lastSeen.toISOString().slice(11, 19);
    for (const words of document.querySelectorAll("[data-live-since]")) words.textContent = `Last update ${at} UTC.`;
    show("lost", true);
  }, LOST_AFTER);
});
document.addEventListener("htmx:sse:after:connection", () => {
  clearTimeout(lostTimer);
  lostTimer = null;
  const wasLost = document.querySelector("[data-live-lost]:not([hidden])");
  show("lost", false);
  if (!wasLost) return;
  show("back", true);
  setTimeout(() => show("back", false), BACK_FOR);
});
