// Single keys for a morning's reading. Off while typing and with a modifier, and for good by the switch in the help.
const OFF = "carrel.keys.off";

export function keyboard(): void {
  const help = document.querySelector<HTMLDialogElement>("dialog#keys");
  const choice = help?.querySelector<HTMLInputElement>("input[name=keys]");
  let off = stored();
  if (choice) {
    choice.checked = !off;
    choice.addEventListener("change", () => {
      off = !choice.checked;
      try {
        localStorage.setItem(OFF, off ? "1" : "");
      } catch {
        // private windows may refuse storage: the switch then lasts for this page
      }
    });
  }
  document.addEventListener("click", (event) => {
    if ((event.target as Element).closest("[data-keys-help]")) help?.showModal();
  });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    if (off && event.key !== "?") return;
    if (help?.open) return;
    const action = keys[event.key];
    if (event.key === "?" && help) help.showModal();
    else if (!action?.()) return;
    event.preventDefault();
  });
}

const keys: Record<string, () => boolean> = {
  "/": () => {
    const box = document.querySelector<HTMLInputElement>("input[data-filter], .masthead input[type=search]");
    box?.focus();
    box?.select();
    return box !== null;
  },
  j: () => step(1),
  k: () => step(-1),
  o: () => press(current()?.querySelector("h2 a")),
  p: () => press(current()?.querySelector("[data-pdf]") ?? document.querySelector("[data-pdf]")),
  "[": () => press(document.querySelector("a[rel=prev]")),
  "]": () => press(document.querySelector("a[rel=next]")),
  h: () => press(document.querySelector(".masthead .name")),
};

function current(): HTMLElement | null {
  return document.querySelector(".card.current") ?? document.activeElement?.closest<HTMLElement>(".card") ?? null;
}

function step(by: number): boolean {
  const cards = [...document.querySelectorAll<HTMLElement>(".card")];
  if (!cards.length) return false;
  const from = current();
  // the first press takes the card at the top of the window, wherever the reader has scrolled to
  const top = cards.findIndex((card) => card.getBoundingClientRect().bottom > 80);
  const to = from ? cards.indexOf(from) + by : Math.max(top, 0);
  const card = cards[Math.min(Math.max(to, 0), cards.length - 1)];
  from?.classList.remove("current");
  card?.classList.add("current");
  card?.querySelector<HTMLElement>("h2 a")?.focus({ preventScroll: true });
  card?.scrollIntoView({ block: "start" });
  return true;
}

function press(link: Element | null | undefined): boolean {
  (link as HTMLElement | null | undefined)?.click();
  return Boolean(link);
}

function typing(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || target.matches("input, textarea, select"));
}

function stored(): boolean {
  try {
    return localStorage.getItem(OFF) === "1";
  } catch {
    return false;
  }
}
