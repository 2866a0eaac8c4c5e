import { defineConfig } from "vite";

// Two scripts (every page; pages with plots) and one style sheet. Names carry a hash, the manifest tells the server.
export default defineConfig({
  base: "/static/",
  publicDir: false,
  clearScreen: false,
  logLevel: "warn",
  build: {
    outDir: "../src/carrel/web/static",
    emptyOutDir: true,
    manifest: "manifest.json",
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"], // these know light-dark()
    modulePreload: false,
    rollupOptions: {
      input: { page: "src/page.ts", plots: "src/plots.ts", styles: "src/styles.css" },
    },
  },
});
