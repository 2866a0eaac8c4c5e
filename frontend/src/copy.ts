// Buttons that copy: data-copy names the element whose text is meant; on a card it is title, authors and address.
export function copyButtons(): void {
  document.addEventListener("click", (event) => {
    const button = (event.target as Element).closest<HTMLButtonElement>("button[data-copy]");
    if (button) void copy(button);
  });
}

async function copy(button: HTMLButtonElement): Promise<void> {
  const said = button.textContent;
  let answer = "Copied";
  try {
    await navigator.clipboard.writeText(textFor(button));
  } catch {
    answer = "Not allowed here";
  }
  button.textContent = answer;
  setTimeout(() => (button.textContent = said), 1600);
}

function textFor(button: HTMLButtonElement): string {
  const target = button.dataset.copy ? document.querySelector(button.dataset.copy) : null;
  if (target) return (target.textContent ?? "").trim() + "\n";
  const card = button.closest(".card");
  const link = card?.querySelector<HTMLAnchorElement>("[data-title]");
  const authors = card?.querySelector("[data-authors]")?.getAttribute("data-authors") ?? "";
  const address = card?.querySelector<HTMLAnchorElement>("[data-address]")?.href ?? link?.href ?? "";
  return [link?.dataset.title ?? "", authors, address].filter(Boolean).join("\n") + "\n";
}
