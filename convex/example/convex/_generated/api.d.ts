/* As `npx convex dev` writes it; it needs a deployment, so this copy was written by hand. */
import type { ApiFromModules, FilterApi, FunctionReference } from "convex/server";
import type * as crons from "../crons.js";
import type * as videos from "../videos.js";

declare const fullApi: ApiFromModules<{ crons: typeof crons; videos: typeof videos }>;
export declare const api: FilterApi<typeof fullApi, FunctionReference<any, "public">>;
export declare const internal: FilterApi<typeof fullApi, FunctionReference<any, "internal">>;
export declare const components: {
  videoJobs: import("stillreel-convex/_generated/component.js").ComponentApi<"videoJobs">;
};
