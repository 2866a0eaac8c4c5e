// Interactive figures, on pages that have some: plotly takes the place of the server's drawing, in the page's own
// colours and type, in both themes. The data lie beside the drawing as JSON.
import { asCsv, plain, type Trace } from "./csv";

interface Figure {
  data: (Trace & Record<string, unknown>)[];
  layout: Record<string, unknown>;
}
interface Plotly {
  react(at: HTMLElement, data: unknown, layout: unknown, config: unknown): Promise<unknown>;
  downloadImage(at: HTMLElement, options: Record<string, unknown>): Promise<unknown>;
}

let library: Promise<Plotly> | undefined;

/** The label of an axis. */
function text(axis: unknown): string {
  const title = (axis as { title?: { text?: string } | string } | undefined)?.title;
  return typeof title === "string" ? title : (title?.text ?? "");
}

/** A text in lines of at most so many letters, broken between words. */
function broken(text: string, letters: number): string {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= letters) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.join("<br>");
}

const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      void draw(entry.target as HTMLElement);
    }
  },
  { rootMargin: "300px 0px" },
);

function look(): void {
  for (const figure of document.querySelectorAll<HTMLElement>("figure[data-plot]:not([data-drawn])")) near.observe(figure);
}
look();
document.addEventListener("carrel:result", look);
document.addEventListener("carrel:theme", () => {
  for (const figure of document.querySelectorAll<HTMLElement>("figure[data-drawn]")) void draw(figure);
});
document.addEventListener("click", (event) => {
  const button = (event.target as Element).closest<HTMLButtonElement>("button[data-download]");
  const figure = button?.closest<HTMLElement>("figure");
  if (!button || !figure) return;
  if (button.dataset.download === "csv") save(`${name(figure)}.csv`, asCsv(read(figure).data, labels(figure)));
  else void picture(figure);
});

async function draw(figure: HTMLElement): Promise<void> {
  const drawing = figure.querySelector<HTMLElement>(".drawing");
  if (!drawing) return;
  const plotly = await load();
  const before = figure.querySelector<HTMLElement>(".plot") ?? drawing;
  const height = Math.max(before.getBoundingClientRect().height, 200);
  const wanted = dress(read(figure), drawing, height);
  let at = figure.querySelector<HTMLElement>(".plot");
  if (!at) {
    at = document.createElement("div");
    at.className = "plot";
    at.style.height = `${height}px`; // so that nothing jumps
    drawing.after(at);
    drawing.hidden = true;
    figure.setAttribute("data-drawn", "");
  }
  await plotly.react(at, wanted.data, wanted.layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: false,
    doubleClick: "reset",
  });
}

/** The page's colours and type on a figure: one hue of the family for the first line, quiet ones after it. */
function dress(figure: Figure, at: HTMLElement, height: number): Figure {
  const ink = colour(at, "--ink"), quiet = colour(at, "--quiet"), line = colour(at, "--line"), sheet = colour(at, "--sheet");
  const hues = [1, 2, 3, 4, 5, 6].map((n) => colour(at, `--series-${n}`));
  const font = { family: getComputedStyle(document.body).getPropertyValue("--sans"), size: 12, color: quiet };
  const axis = (given: unknown, letters = Infinity): Record<string, unknown> => {
    const own = (given ?? {}) as Record<string, unknown>;
    const title = { ...(own.title as object), text: broken(text(own), letters) };
    return {
      ...own,
      gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, ticks: "outside", ticklen: 4,
      tickfont: { ...font }, title: { ...title, font: { ...font }, standoff: 6 }, automargin: true, showline: true, zeroline: false, color: quiet, fixedrange: false,
      ...(own.type === "log" ? { dtick: own.dtick ?? undefined, exponentformat: "power", minor: { showgrid: false } } : {}),
    };
  };
  let hue = 0;
  const seen = new Map<string, string>();
  const data = figure.data.map((trace) => {
    const group = String(trace.legendgroup ?? trace.name ?? hue);
    if (!seen.has(group)) seen.set(group, hues[hue++ % hues.length] ?? ink);
    const own = seen.get(group) as string;
    const lines = (trace.line ?? {}) as Record<string, unknown>;
    const marks = (trace.marker ?? {}) as Record<string, unknown>;
    const filled = trace.fill && trace.fill !== "none";
    return {
      ...trace,
      line: { ...lines, width: filled ? 0 : (lines.width ?? 2.2), color: own },
      marker: { ...marks, color: own, size: marks.size ?? 5 },
      ...(filled ? { fillcolor: faint(own) } : {}),
      ...(trace.text ? { textfont: { ...font, color: own } } : {}),
    };
  });
  const named = data.filter((trace) => trace.name && trace.showlegend !== false);
  const several = named.length > 1;
  const box = at.parentElement?.getBoundingClientRect();
  const ends = several ? endLabels(named, figure.layout, font, box?.width ?? 0, height - 50) : [];
  const widest = Math.max(0, ...ends.map((label) => label.text.length)) * 6.4;
  return {
    data,
    layout: {
      ...figure.layout,
      title: undefined,
      xaxis: axis(figure.layout.xaxis),
      yaxis: axis(figure.layout.yaxis, (height - 50) / 6.4), // an upright label is no longer than the figure is high
      font,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: ends.length ? 14 + widest : 12, t: several && !ends.length ? 28 : 10, b: 40 },
      annotations: ends,
      showlegend: several && !ends.length,
      legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { ...font, color: ink } },
      hovermode: "x unified",
      hoverlabel: { bgcolor: sheet, bordercolor: line, font: { ...font, color: ink } },
      autosize: true,
    },
  };
}

interface Label extends Record<string, unknown> {
  text: string;
}

/** Names at the ends of their lines, pushed apart where ends are close; none where there is no room for them. */
function endLabels(
  traces: (Trace & Record<string, unknown>)[],
  layout: Record<string, unknown>,
  font: Record<string, unknown>,
  width: number,
  height: number,
): Label[] {
  const scale = (axis: unknown, value: number): number => ((axis as { type?: string } | undefined)?.type === "log" ? Math.log10(value) : value);
  const places: { y: number; trace: Trace & Record<string, unknown> }[] = [];
  const heights: number[] = [];
  for (const trace of traces) {
    let last: { x: number; y: number } | undefined;
    trace.x.forEach((x, index) => {
      const y = trace.y[index];
      if (typeof x !== "number" || typeof y !== "number") return;
      const point = { x: scale(layout.xaxis, x), y: scale(layout.yaxis, y) };
      if (!Number.isFinite(point.x + point.y)) return;
      heights.push(point.y);
      if (!last || point.x >= last.x) last = point;
    });
    if (last) places.push({ y: last.y, trace });
  }
  const longest = Math.max(...places.map((place) => place.trace.name?.length ?? 0)) * 6.4;
  if (places.length * 15 > height || longest > 0.4 * width) return [];
  const most = Math.max(...heights), least = Math.min(...heights);
  const pixels = (height / 1.1) / (most - least || 1); // plotly leaves a twentieth free on either side
  places.sort((a, b) => b.y - a.y);
  let floor = Infinity; // in pixels above the lowest value; labels are set from the top down
  return places.map(({ y, trace }) => {
    const wanted = (y - least) * pixels;
    floor = Math.min(wanted, floor - 15);
    return {
      xref: "paper", x: 1, y, text: trace.name ?? "", showarrow: false, xanchor: "left", xshift: 4, yshift: floor - wanted,
      font: { ...font, color: (trace.line as { color?: string }).color },
    };
  });
}

/** A custom property as a plain colour; light-dark() is resolved by letting the browser paint with it. */
function colour(at: HTMLElement, property: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${property})`;
  (at.closest("figure") ?? document.body).append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function faint(rgb: string): string {
  const parts = rgb.match(/[\d.]+/g) ?? [];
  return `rgba(${parts.slice(0, 3).join(",")},0.16)`;
}

async function picture(figure: HTMLElement): Promise<void> {
  if (!figure.hasAttribute("data-drawn")) await draw(figure);
  const at = figure.querySelector<HTMLElement>(".plot");
  if (!at) return;
  const plotly = await load();
  const wanted = dress(read(figure), at, 540);
  // a picture travels alone: it carries its title and a ground
  const layout = { ...wanted.layout, paper_bgcolor: colour(at, "--sheet"), margin: { ...(wanted.layout.margin as object), l: 70, t: 70, b: 60 }, title: { text: caption(figure), x: 0.02, font: { size: 15 } } };
  const room = document.createElement("div");
  await plotly.react(room, wanted.data, layout, { staticPlot: true });
  await plotly.downloadImage(room, { format: "png", width: 960, height: 540, scale: 2, filename: name(figure) });
}

function read(figure: HTMLElement): Figure {
  return JSON.parse(figure.querySelector("script[type='application/json']")?.textContent ?? "{}") as Figure;
}

function labels(figure: HTMLElement): [string, string] {
  const { xaxis, yaxis } = read(figure).layout;
  return [plain(text(xaxis)) || "x", plain(text(yaxis)) || "y"];
}

const caption = (figure: HTMLElement): string => figure.querySelector("figcaption .title")?.textContent?.trim() ?? "";
const name = (figure: HTMLElement): string => figure.dataset.plot || "figure";

function save(filename: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function load(): Promise<Plotly> {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = document.documentElement.dataset.plotly ?? "";
    script.onload = () => resolve((window as unknown as { Plotly: Plotly }).Plotly);
    script.onerror = () => {
      library = undefined;
      reject(new Error("the plot library could not be loaded; the drawing stays"));
    };
    document.head.append(script);
  });
  return library;
}
