/* As `npx convex dev` writes it; it needs a deployment, so this copy was written by hand. */
import type { ApiFromModules, FilterApi, FunctionReference } from "convex/server";
import type * as http from "../http.js";
import type * as videoJobs from "../videoJobs.js";

declare const fullApi: ApiFromModules<{ http: typeof http; videoJobs: typeof videoJobs }>;
export declare const api: FilterApi<typeof fullApi, FunctionReference<any, "public">>;
export declare const internal: FilterApi<typeof fullApi, FunctionReference<any, "internal">>;
