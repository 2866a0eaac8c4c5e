// The three-way switch: system, light, dark. The choice is a cookie, so that the server's first paint is right;
// without JavaScript the same form posts and the server sets it.
export function themeSwitch(): void {
  document.addEventListener("submit", (event) => {
    const form = event.target as HTMLFormElement;
    const theme = ((event as SubmitEvent).submitter as HTMLButtonElement | null)?.value;
    if (!form.matches("form.theme") || !theme) return;
    event.preventDefault();
    document.cookie = `theme=${theme}; path=/; max-age=31536000; samesite=lax`;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    for (const button of document.querySelectorAll<HTMLButtonElement>("form.theme button")) {
      button.setAttribute("aria-pressed", String(button.value === theme));
    }
    document.dispatchEvent(new Event("carrel:theme"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    document.dispatchEvent(new Event("carrel:theme"));
  });
}
