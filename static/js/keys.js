// Keyboard: / search, j k rows, Enter opens, ? help, and what a page marks with data-key (first in
// the row in focus). Off while typing, with modifiers, in dialogs.
import { openDialog } from "./dialogs.js";

const TYPING = "input, textarea, select, [contenteditable], [role=textbox], [role=combobox], [role=listbox], [role=option]";
const PRESSABLE = "button, summary, [role=button], [role=radio], [role=menuitem]";

export function keysAreOff(event) {
  const at = event.target instanceof Element ? event.target : document.body;
  if (event.defaultPrevented || event.isComposing) return true;
  if (event.ctrlKey || event.metaKey || event.altKey) return true;
  if (at.closest(TYPING)) return true;
  if (document.querySelector("dialog[open], [popover]:popover-open, [role=menu]:not([hidden])")) return true;
  return event.key === "Enter" && Boolean(at.closest(PRESSABLE));
}

function rows() {
  return [...document.querySelectorAll("[data-rows] [data-row]")].filter((row) => row.offsetParent !== null);
}

function currentIndex(list) {
  const at = list.findIndex((row) => row.contains(document.activeElement));
  return at >= 0 ? at : list.findIndex((row) => row.querySelector("[aria-current]"));
}

function focusRow(row) {
  const link = row.querySelector("a[href]") ?? row;
  link.focus();
  row.scrollIntoView({ block: "nearest" });
  // Beside an open panel, moving is opening: the neighbour's link is followed.
  if (row.closest("[data-rows]").hasAttribute("data-peek") && document.querySelector(".peek [data-peek-open]")) link.click();
}

function move(step) {
  const list = rows();
  if (!list.length) return false;
  const at = currentIndex(list);
  const next = at < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(Math.max(at + step, 0), list.length - 1);
  focusRow(list[next]);
  return true;
}

function press(key) {
  const marked = `[data-key="${CSS.escape(key)}"]`;
  const row = document.activeElement?.closest("[data-row]");
  const outside = [...document.querySelectorAll(marked)].find((found) => !found.closest("[data-row]"));
  const found = row?.querySelector(marked) ?? outside;
  found?.click();
  return Boolean(found);
}

const ACTIONS = {
  j: () => move(1),
  k: () => move(-1),
  "/": () => {
    const search = document.querySelector("main input[type=search]");
    search?.focus();
    search?.select();
    return Boolean(search);
  },
  t: () => {
    const other = document.querySelector("[data-views] a:not([aria-current])");
    other?.click();
    return Boolean(other);
  },
  "?": () => {
    const help = document.getElementById("keys");
    if (help) openDialog(help);
    return Boolean(help);
  },
};

// The row whose panel is open keeps its mark, whether it was clicked or reached by j and k.
document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-peek] [data-row] a[href]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  for (const other of link.closest("[data-rows]").querySelectorAll("a[aria-current]")) other.removeAttribute("aria-current");
  link.setAttribute("aria-current", "true");
});

// Where the panel stands above the list, opening it brings it into view.
document.addEventListener("htmx:after:swap", () => {
  const peek = document.querySelector(".peek:has([data-peek-open])");
  if (peek && peek.getBoundingClientRect().bottom < 0 && !matchMedia("(min-width: 1101px)").matches) peek.scrollIntoView();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    const close = document.querySelector(".peek [data-peek-close]");
    const menu = document.querySelector("[data-menu][aria-expanded=true]");
    if (menu) {
      menu.click();
      menu.focus();
    } else if (close && !document.querySelector("dialog[open]")) close.click();
    return;
  }
  if (keysAreOff(event)) return;
  if (ACTIONS[event.key]?.() || (event.key.length === 1 && press(event.key))) event.preventDefault();
});
