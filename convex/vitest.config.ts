import { defineConfig } from "vitest/config";

const SERVER = ["src/**/*.test.ts", "without-*/**/*.test.ts"];

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "edge",
          environment: "edge-runtime",
          include: SERVER,
          server: { deps: { inline: ["convex-test"] } },
        },
      },
      {
        test: {
          name: "react",
          environment: "happy-dom",
          include: ["src/**/*.test.tsx"],
        },
      },
    ],
  },
});
