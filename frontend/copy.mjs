// Puts other people's files beside ours after Vite has emptied the folder. Folder names carry the version, so that
// browsers may keep them for ever; vendor.json tells the server the names.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";

const out = "../src/carrel/web/static";
const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")).version;

const htmx = `vendor/htmx-${version("htmx.org")}`;
cpSync("node_modules/htmx.org/dist/htmx.min.js", `${out}/${htmx}/htmx.min.js`);
cpSync("node_modules/htmx.org/LICENSE", `${out}/${htmx}/LICENSE`);

// MathJax by components: no menu, no speech engine, no macro packages that reach outside a formula (configmacros and
// cancel are built on newcommand and enclose, which are loaded for them but not switched on).
const mathjax = `vendor/mathjax-${version("mathjax")}`;
const components = [
  "startup", "core", "input/tex-base", "output/chtml", "ui/safe", "a11y/assistive-mml",
  ...["ams", "boldsymbol", "braket", "cancel", "enclose", "configmacros", "newcommand", "noundefined", "textmacros", "upgreek"]
    .map((name) => `input/tex/extensions/${name}`),
];
for (const name of components) cpSync(`node_modules/mathjax/${name}.js`, `${out}/${mathjax}/${name}.js`);
cpSync("node_modules/mathjax/LICENSE", `${out}/${mathjax}/LICENSE`);
const font = "node_modules/@mathjax/mathjax-newcm-font";
cpSync(`${font}/chtml.js`, `${out}/${mathjax}/font/chtml.js`);
for (const part of ["woff2", "dynamic"]) cpSync(`${font}/chtml/${part}`, `${out}/${mathjax}/font/chtml/${part}`, { recursive: true });

mkdirSync(out, { recursive: true });
writeFileSync(`${out}/vendor.json`, JSON.stringify({ htmx: `${htmx}/htmx.min.js`, mathjax }));
