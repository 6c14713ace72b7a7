import { ConvexProvider, type ConvexReactClient } from "convex/react";
import { createRoot } from "react-dom/client";
import { App } from "./App.js";
import "./style.css";

export function show(client: ConvexReactClient): void {
  createRoot(document.getElementById("root")!).render(
    <ConvexProvider client={client}>
      <App />
    </ConvexProvider>,
  );
}
