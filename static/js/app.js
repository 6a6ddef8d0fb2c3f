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

// A link to a field opens the group the field is folded away in.
document.addEventListener("click", (event) => {
  const id = event.target.closest('a[href^="#"]')?.getAttribute("href").slice(1);
  const field = id && document.getElementById(id);
  for (let fold = field?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (field?.matches("input, select, textarea")) {
    event.preventDefault();
    field.focus();
  }
});

// A form that the server draws anew at every change ([data-drawn]) is morphed, which sets attributes.
// Boxes and options that a person has touched no longer follow those: what was drawn holds.
document.addEventListener("htmx:after:swap", () => {
  for (const box of document.querySelectorAll("[data-drawn] :is([type=checkbox], [type=radio])")) box.checked = box.defaultChecked;
  for (const option of document.querySelectorAll("[data-drawn] option")) option.selected = option.defaultSelected;
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
