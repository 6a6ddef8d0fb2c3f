// What every page loads: toasts, dialogs, menu, keys, copy buttons, focus after swaps, live parts.
import "./dialogs.js";
import "./keys.js";
import "./live.js";
import { toast } from "./toasts.js";

document.addEventListener("toast", (event) => toast(event.detail));
document.addEventListener("htmx:error", (event) => {
  const status = event.detail?.ctx?.response?.raw?.status;
  // Answers with a status carry their own toast; this is the network.
  if (!status) toast({ kind: "bad", title: "No answer.", text: "The server cannot be reached. Nothing was changed." });
});

document.addEventListener("click", async (event) => {
  const menu = event.target.closest("[data-menu]");
  if (menu) {
    const open = document.getElementById("side").classList.toggle("open");
    menu.setAttribute("aria-expanded", String(open));
    if (open) document.querySelector("#side a.nv")?.focus();
    return;
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    try {
      await navigator.clipboard.writeText(copy.dataset.copy);
      toast({ kind: "good", title: "Copied." });
    } catch {
      toast({ kind: "bad", title: "Not copied.", text: "The browser refused the clipboard." });
    }
  }
});

function focusMarked(root) {
  const marked = root.querySelector?.("[data-focus]");
  if (marked) marked.focus();
}
document.addEventListener("DOMContentLoaded", () => focusMarked(document));
document.addEventListener("htmx:after:swap", (event) => focusMarked(event.target));
if (document.readyState !== "loading") focusMarked(document);
