// Loaded in <head> before the first paint: sets light or dark from the stored choice or the system.
(() => {
  const KEY = "stillhouse.theme";
  const ORDER = ["light", "dark", "system"];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try {
      const value = localStorage.getItem(KEY);
      return ORDER.includes(value) ? value : "system";
    } catch {
      return "system"; // storage may be off; the choice then lasts for the page
    }
  }

  let choice = stored();

  function apply() {
    const theme = choice === "system" ? (dark.matches ? "dark" : "light") : choice;
    document.documentElement.dataset.bsTheme = theme;
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.setAttribute("aria-label", `Theme: ${choice}`);
      button.title = `Theme: ${choice}`;
      for (const icon of button.querySelectorAll("[data-theme-icon]")) {
        icon.hidden = icon.dataset.themeIcon !== choice;
      }
    }
    dispatchEvent(new CustomEvent("themechange", { detail: { theme } }));
  }

  apply();
  dark.addEventListener("change", apply);
  addEventListener("storage", (event) => {
    if (event.key === KEY) {
      choice = stored();
      apply();
    }
  });
  document.addEventListener("DOMContentLoaded", apply);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) return;
    choice = ORDER[(ORDER.indexOf(choice) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // see stored()
    }
    apply();
  });
})();
