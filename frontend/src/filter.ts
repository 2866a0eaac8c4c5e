// The atlas' filter box: tiles whose words do not match step aside, and empty families with them.
export function filters(): void {
  const box = document.querySelector<HTMLInputElement>("input[data-filter]");
  if (!box) return;
  const tiles = [...document.querySelectorAll<HTMLElement>(box.dataset.filter ?? "")];
  const answer = document.querySelector<HTMLElement>("[data-filter-answer]");
  const apply = (): void => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const tile of tiles) {
      const text = tile.dataset.words ?? tile.textContent?.toLowerCase() ?? "";
      tile.hidden = !words.every((word) => text.includes(word));
      if (!tile.hidden) left += 1;
    }
    for (const section of document.querySelectorAll<HTMLElement>("[data-section]")) {
      section.hidden = !section.querySelector(".tile:not([hidden])");
    }
    if (answer) answer.textContent = words.length ? (left ? `${left} of ${tiles.length}` : "no method matches; press Esc to see all") : "";
  };
  box.addEventListener("input", apply);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      box.value = "";
      apply();
      box.blur();
    }
  });
  apply();
}
