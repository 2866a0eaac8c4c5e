// The numbers of a figure as CSV: one row a point, one column for the line's name.
export interface Trace {
  name?: string;
  x: (number | string | null)[];
  y: (number | null)[];
  fill?: string;
  showlegend?: boolean;
  legendgroup?: string;
}

export function asCsv(traces: Trace[], [x, y]: [string, string]): string {
  const rows = [["line", x, y]];
  for (const trace of traces) {
    if (trace.fill && trace.fill !== "none") continue; // the band between seeds is drawn, not measured
    trace.x.forEach((value, index) => rows.push([plain(trace.name ?? ""), String(value ?? ""), String(trace.y[index] ?? "")]));
  }
  return rows.map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function quoted(cell: string): string {
  return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

/** The names of a figure are written for plotly, which reads tags in them. */
export function plain(text: string): string {
  return text.replaceAll("&lt;", "<").replaceAll("&amp;", "&");
}
