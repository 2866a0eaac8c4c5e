// A displayed formula is as wide as its column: scaled down to `least`, and below that it scrolls by itself.
// MathJax' own scaling happens once, when it typesets; here the wrapper is watched, so turning a phone is enough.
const least = 0.6;
const natural = new WeakMap<Element, number>();
const waiting = new Set<HTMLElement>();
let frame = 0;

// the wrapper is watched, never the formula in it: writing its size must not call us again
const watch = new ResizeObserver((entries) => {
  for (const entry of entries) schedule(entry.target as HTMLElement);
});

/** Fit the displayed formulas among ``elements`` now and whenever their column changes; wide inline ones scroll. */
export function fit(elements: Iterable<Element>): void {
  for (const element of elements) {
    if (element instanceof HTMLElement && element.querySelector("mjx-container")) watch.observe(column(element));
  }
}

addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll<HTMLElement>(".tex.display[data-set]")) fitOne(box);
});
// a new font changes every width
void document.fonts.ready.then(() => {
  document.fonts.addEventListener("loadingdone", () => {
    for (const box of document.querySelectorAll<HTMLElement>(".tex.display[data-set]")) {
      const formula = box.querySelector("mjx-container");
      if (formula) natural.delete(formula);
      schedule(box);
    }
  });
});

function column(element: HTMLElement): HTMLElement {
  return element.matches(".display") ? element : (element.parentElement ?? element);
}

function schedule(box: HTMLElement): void {
  waiting.add(box);
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const boxes = [...waiting].filter((element) => element.isConnected);
    waiting.clear();
    for (const element of boxes) element.matches(".display") ? fitOne(element) : fitInline(element);
  });
}

function fitOne(box: HTMLElement): void {
  const formula = box.querySelector<HTMLElement>("mjx-container[display]");
  if (!formula) return;
  const room = inner(box);
  if (room <= 0) return;
  const wants = naturalWidth(formula);
  let scale = Math.min(1, Math.floor((room / wants) * 1000) / 1000);
  const scrolls = scale < least;
  scale = Math.max(scale, least);
  write(formula, scale);
  if (!scrolls && box.scrollWidth > box.clientWidth + 1) {
    scale = Math.max(least, Math.floor(((scale * box.clientWidth) / box.scrollWidth) * 1000) / 1000);
    write(formula, scale);
  }
  scrollable(box, scrolls);
}

/** The width of a formula at its full size, measured once. */
function naturalWidth(formula: HTMLElement): number {
  const known = natural.get(formula);
  if (known) return known;
  const before = formula.style.fontSize;
  formula.style.fontSize = "";
  const tagged = formula.getAttribute("width") === "full";
  const body = formula.querySelector("mjx-math") ?? formula;
  const width = tagged ? parseFloat(getComputedStyle(formula).minWidth) : body.getBoundingClientRect().width;
  formula.style.fontSize = before;
  if (width > 0) natural.set(formula, width);
  return width || 1;
}

/** An inline formula breaks where TeX allows; what is still wider than its line scrolls by itself. */
function fitInline(line: HTMLElement): void {
  const room = inner(line);
  for (const element of line.querySelectorAll<HTMLElement>(":scope > .tex:not(.display)")) {
    element.classList.remove("wide");
    scrollable(element, false);
    let widest = 0;
    for (const part of element.querySelectorAll("mjx-container, mjx-container > mjx-math")) {
      for (const box of part.getClientRects()) widest = Math.max(widest, box.width);
    }
    if (widest > room + 1) {
      element.classList.add("wide");
      scrollable(element, true);
    }
  }
}

function inner(box: HTMLElement): number {
  const style = getComputedStyle(box);
  return box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
}

function write(formula: HTMLElement, scale: number): void {
  const size = scale === 1 ? "" : `${Math.round(scale * 1000) / 10}%`;
  if (formula.style.fontSize !== size) formula.style.fontSize = size;
}

function scrollable(box: HTMLElement, yes: boolean): void {
  if (box.classList.contains("scrolls") === yes) return;
  box.classList.toggle("scrolls", yes);
  if (yes) {
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "wide formula, scrolls sideways");
  } else {
    for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  }
}
