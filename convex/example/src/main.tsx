import { ConvexReactClient } from "convex/react";
import { show } from "./show.js";

show(new ConvexReactClient(import.meta.env.VITE_CONVEX_URL as string));
