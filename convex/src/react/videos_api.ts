import type { FunctionReference } from "convex/server";
import type { VideoJob } from "../component/shapes.js";

type OnJob<Type extends "mutation" | "action"> = FunctionReference<Type, "public", { jobId: string }, null>;

/** What `videos.api({ auth })` exports, as `api.videos` of an app has it. */
export interface VideosApi {
  get: FunctionReference<"query", "public", { jobId: string }, VideoJob | null>;
  cancel: OnJob<"mutation">;
  retry: OnJob<"mutation">;
  watch: OnJob<"mutation">;
  refresh: OnJob<"action">;
  presignUpload: FunctionReference<
    "action",
    "public",
    { contentType: string; contentLength?: number },
    { uploadUrl: string; uploadId: string; expiresAt: number }
  >;
}
