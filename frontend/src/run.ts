// An experiment run from its form: post, follow the events, put the result in the page. No reload; without
// JavaScript the same form leads to the run's own page.
import { formulas } from "./formulas";

interface Now {
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  fraction: number;
  text: string;
}

export function experiments(): void {
  for (const form of document.querySelectorAll<HTMLFormElement>("form[data-run]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void start(form);
    });
    for (const field of form.querySelectorAll("input, select")) field.addEventListener("input", () => complain(form, "", ""));
  }
  // a page opened while its experiment runs: /runs/… follows it too
  for (const panel of document.querySelectorAll<HTMLElement>("[data-events]")) follow(panel);
}

async function start(form: HTMLFormElement): Promise<void> {
  const panel = document.querySelector<HTMLElement>("#progress");
  const button = form.querySelector<HTMLButtonElement>("button.button");
  if (!panel || !button) return;
  complain(form, "", "");
  button.disabled = true;
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams([...new FormData(form)].map(([name, value]) => [name, String(value)])),
      headers: { "X-Part": "progress" },
    });
    const text = await answer.text();
    if (!answer.ok) {
      complain(form, text.trim(), answer.headers.get("X-Field") ?? "");
      return;
    }
    panel.innerHTML = text;
    panel.scrollIntoView({ block: "nearest" });
    const inner = panel.querySelector<HTMLElement>("[data-events]");
    if (inner) follow(inner, () => (button.disabled = false));
    else await finish(answer.headers.get("X-Run") ?? ""); // the result was kept: it is there already
  } catch {
    complain(form, "The desk does not answer. Is it still running? Your numbers are kept; press Run again.", "");
  } finally {
    if (!panel.querySelector("[data-events]")) button.disabled = false;
  }
}

function follow(panel: HTMLElement, ended: () => void = () => undefined): void {
  const bar = panel.querySelector("progress");
  const words = panel.querySelector<HTMLElement>("[data-words]");
  const events = new EventSource(panel.dataset.events ?? "");
  cancelButton(panel);
  events.addEventListener("now", (event) => {
    const now = JSON.parse((event as MessageEvent<string>).data) as Now;
    if (bar) {
      if (now.state === "queued") bar.removeAttribute("value");
      else bar.value = now.fraction;
    }
    if (words) words.textContent = now.text;
  });
  events.addEventListener("end", (event) => {
    events.close();
    void finish((event as MessageEvent<string>).data).finally(ended);
  });
  events.addEventListener("error", () => {
    if (events.readyState !== EventSource.CLOSED) return; // a connection lost is tried again by the browser
    if (words) words.textContent = "This run is no longer followed: the desk was closed or opened anew. Press Run again.";
    bar?.remove();
    ended();
  });
}

async function finish(address: string): Promise<void> {
  const answer = await fetch(address, { headers: { "X-Part": "result" } });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of page.querySelectorAll<HTMLElement>("[data-part]")) {
    const here = document.querySelector<HTMLElement>(`[data-part="${part.dataset.part}"]`);
    if (!here) continue;
    const fresh = document.adoptNode(part);
    here.replaceWith(fresh);
    formulas(fresh);
  }
  document.dispatchEvent(new Event("carrel:result"));
}

function cancelButton(panel: HTMLElement): void {
  const form = panel.querySelector<HTMLFormElement>("form.cancel");
  form?.addEventListener("submit", (event) => {
    event.preventDefault();
    void fetch(form.action, { method: "POST", headers: { "X-Part": "progress" } });
    const button = form.querySelector("button");
    if (button) button.disabled = true;
  });
}

function complain(form: HTMLFormElement, sentence: string, name: string): void {
  const place = form.querySelector<HTMLElement>("[role=alert]");
  if (place) {
    place.textContent = sentence;
    place.hidden = !sentence;
  }
  for (const field of form.querySelectorAll<HTMLElement>("[aria-invalid]")) field.removeAttribute("aria-invalid");
  const field = name ? form.querySelector<HTMLElement>(`[name="${CSS.escape(name)}"]`) : null;
  field?.closest("details")?.setAttribute("open", "");
  field?.setAttribute("aria-invalid", "true");
  field?.focus();
}
