// Formulas: MathJax comes when the first one is near the window, and sets them block by block, in order.
// Only elements of class "tex" are looked at: the server has cut them out of the text.
import { fit } from "./fitting";

interface MathJaxReady {
  config: { options: { menuOptions?: unknown } };
  startup: { promise: Promise<void>; defaultReady(): void };
  typesetPromise(elements: Element[]): Promise<void>;
  texReset(): void;
}

let chain: Promise<unknown> | undefined;
const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      enqueue(entry.target);
    }
  },
  { rootMargin: "800px 0px" },
);

/** Watch every block of ``root`` that holds formulas. */
export function formulas(root: Document | Element): void {
  const blocks = new Set<Element>();
  for (const element of root.querySelectorAll(".tex")) blocks.add(element.closest("[data-math]") ?? element);
  for (const block of blocks) near.observe(block);
}

function enqueue(block: Element): void {
  chain ??= load();
  chain = chain.then(() => set(block)).catch((reason: unknown) => console.warn("a formula stays as its source", reason));
}

async function set(block: Element): Promise<void> {
  const mathjax = (window as unknown as { MathJax: MathJaxReady }).MathJax;
  const own = block.matches(".tex") ? [block] : [];
  const elements = [...own, ...block.querySelectorAll(".tex")].filter((element) => !element.hasAttribute("data-set"));
  if (!elements.length || !block.isConnected) return;
  mathjax.texReset(); // numbers of one paper do not go on in the next
  for (const element of elements) element.setAttribute("data-set", "");
  await mathjax.typesetPromise(elements);
  fit(elements);
}

async function load(): Promise<void> {
  const base = document.documentElement.dataset.mathjax ?? "";
  const extensions = ["ams", "boldsymbol", "braket", "cancel", "configmacros", "noundefined", "textmacros", "upgreek"];
  (window as unknown as { MathJax: unknown }).MathJax = {
    loader: {
      paths: { mathjax: base, "mathjax-newcm": `${base}/font` },
      load: ["core", "input/tex-base", ...extensions.map((name) => `[tex]/${name}`), "output/chtml", "ui/safe", "a11y/assistive-mml"],
    },
    tex: {
      // no newcommand: what one abstract defines must not reach the next; no require, autoload, html: nothing gets in
      packages: ["base", ...extensions],
      inlineMath: [["$", "$"], ["\\(", "\\)"]],
      displayMath: [["$$", "$$"], ["\\[", "\\]"]],
      processEscapes: false,
      tags: "none",
      maxMacros: 1000,
      maxBuffer: 8 * 1024,
      macros: {
        bm: ["\\boldsymbol{#1}", 1],
        mathbbm: ["\\mathbb{#1}", 1],
        mathds: ["\\mathbb{#1}", 1],
        R: "\\mathbb{R}",
        E: "\\mathbb{E}",
        eps: "\\varepsilon",
      },
    },
    chtml: { displayOverflow: "overflow", fontPath: `${base}/font`, fontURL: `${base}/font/chtml/woff2`, mtextInheritFont: true },
    options: {
      ignoreHtmlClass: ".*",
      processHtmlClass: "tex",
      skipHtmlTags: { "[-]": ["code", "pre"] },
      enableAssistiveMml: true,
    },
    startup: {
      typeset: false,
      ready(): void {
        const mathjax = (window as unknown as { MathJax: MathJaxReady }).MathJax;
        delete mathjax.config.options.menuOptions; // assistive-mml speaks to a menu that we do not load
        mathjax.startup.defaultReady();
      },
    },
  };
  await new Promise<void>((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${base}/startup.js`;
    script.onload = () => resolve();
    script.onerror = () => reject(new Error("MathJax could not be loaded"));
    document.head.append(script);
  });
  await (window as unknown as { MathJax: MathJaxReady }).MathJax.startup.promise;
}
