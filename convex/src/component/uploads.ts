/** Where a page may put an image before the video is ordered. */
import { ConvexError, v } from "convex/values";
import { ApiProblem } from "../api/problem.js";
import { action } from "./_generated/server.js";
import { openApi } from "./ask.js";

/**
 * A URL to PUT an image of this type and size to, and the id to order it with.
 *
 * Throws ConvexError, whose text pages may see, with what the API says against it.
 */
export const presign = action({
  args: { contentType: v.string(), contentLength: v.optional(v.number()) },
  returns: v.object({ uploadUrl: v.string(), uploadId: v.string(), expiresAt: v.number() }),
  handler: async (_ctx, { contentType, contentLength }) => {
    const target = await openApi()
      .presignUpload(contentType, contentLength)
      .catch((error: unknown) => {
        throw error instanceof ApiProblem ? new ConvexError(error.detail) : error;
      });
    const expiresAt = Date.now() + target.expires_in * 1000;
    return { uploadUrl: target.upload_url, uploadId: target.job_id, expiresAt };
  },
});
