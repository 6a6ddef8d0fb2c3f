// Native dialogs: [data-open=ID] opens, [data-close] closes, focus returns, names are typed.
let opener = null;

export function openDialog(dialog, from) {
  opener = from ?? document.activeElement;
  if (!dialog.open) dialog.showModal();
}

function checkTyped(input) {
  const submit = input.form?.querySelector("[type=submit]");
  if (submit) submit.disabled = input.value !== input.dataset.typed;
}

document.addEventListener("click", (event) => {
  const open = event.target.closest("[data-open]");
  if (open) {
    const dialog = document.getElementById(open.dataset.open);
    if (dialog) {
      openDialog(dialog, open);
      dialog.querySelectorAll("[data-typed]").forEach(checkTyped);
    }
    return;
  }
  const close = event.target.closest("[data-close]");
  if (close) close.closest("dialog")?.close();
  else if (event.target instanceof HTMLDialogElement) event.target.close(); // the backdrop
});

document.addEventListener("input", (event) => {
  if (event.target.matches("[data-typed]")) checkTyped(event.target);
});

document.addEventListener(
  "close",
  (event) => {
    if (!(event.target instanceof HTMLDialogElement)) return;
    if (opener?.isConnected) opener.focus();
    if (event.target.matches("[data-modal]")) event.target.remove(); // else the next swap opens it
  },
  true,
);

// A dialog fetched by htmx opens when it lands; [data-modal] marks it.
document.addEventListener("htmx:after:swap", () => {
  for (const dialog of document.querySelectorAll("dialog[data-modal]:not([open])")) openDialog(dialog);
});
