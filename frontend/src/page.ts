// What every page runs. Each island looks for its own markup and leaves pages without it alone.
import { copyButtons } from "./copy";
import { filters } from "./filter";
import { keyboard } from "./keyboard";
import { formulas } from "./formulas";
import { experiments } from "./run";
import { themeSwitch } from "./theme";

themeSwitch();
keyboard();
copyButtons();
filters();
formulas(document);
experiments();

// Cards that htmx brings in later carry formulas too.
document.addEventListener("htmx:load", (event) => {
  const element = (event as CustomEvent<{ elt: Element }>).detail.elt;
  if (element !== document.body) formulas(element);
});
