import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";
import { alias } from "../vite.alias.js";

export default defineConfig({
  root: import.meta.dirname,
  envDir: "..", // where `npx convex dev` writes the deployment's address to
  plugins: [react()],
  resolve: { alias },
  build: {
    emptyOutDir: true,
    rollupOptions: {
      input: process.env.LOOPBACK ? `${import.meta.dirname}/loopback.html` : `${import.meta.dirname}/index.html`,
    },
  },
});
