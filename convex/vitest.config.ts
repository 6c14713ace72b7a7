import { defineConfig } from "vitest/config";
import { alias } from "./vite.alias.js";

const test = { testTimeout: 30_000, server: { deps: { inline: ["convex-test"] } } };

export default defineConfig({
  test: {
    projects: [
      {
        resolve: { alias },
        test: {
          ...test,
          name: "edge",
          environment: "edge-runtime",
          include: ["src/**/*.test.ts", "without-*/**/*.test.ts"],
        },
      },
      {
        resolve: { alias },
        test: { ...test, name: "react", environment: "happy-dom", include: ["src/**/*.test.tsx"] },
      },
    ],
  },
});
