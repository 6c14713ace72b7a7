import { fileURLToPath } from "node:url";

const source = (path: string) => fileURLToPath(new URL(`./src/${path}`, import.meta.url));

/** The package by its own name, from its sources: nothing has to be built for tests and the example. */
export const alias = [
  { find: "stillreel-convex/react", replacement: source("react/index.ts") },
  { find: "stillreel-convex/convex.config.js", replacement: source("component/convex.config.ts") },
  { find: /^stillreel-convex$/, replacement: source("client/index.ts") },
];
