import { anyApi } from "convex/server";
import type { ApiFromModules, FilterApi, FunctionReference } from "convex/server";
import type * as jobs from "../jobs.js";
import type * as uploads from "../uploads.js";
import type * as webhook from "../webhook.js";
import type * as work from "../work.js";

type Modules = ApiFromModules<{
  jobs: typeof jobs;
  uploads: typeof uploads;
  webhook: typeof webhook;
  work: typeof work;
}>;

export const api: FilterApi<Modules, FunctionReference<any, "public">> = anyApi as any;
export const internal: FilterApi<Modules, FunctionReference<any, "internal">> = anyApi as any;
