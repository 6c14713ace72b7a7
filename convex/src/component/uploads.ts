/** Where a page may put an image before the video is ordered. */
import { v } from "convex/values";
import { action } from "./_generated/server.js";
import { openApi } from "./ask.js";

/** A URL to PUT an image of this type and size to, and the id to order it with. */
export const presign = action({
  args: { contentType: v.string(), contentLength: v.optional(v.number()) },
  returns: v.object({ uploadUrl: v.string(), uploadId: v.string(), expiresAt: v.number() }),
  handler: async (_ctx, { contentType, contentLength }) => {
    const target = await openApi().presignUpload(contentType, contentLength);
    const expiresAt = Date.now() + target.expires_in * 1000;
    return { uploadUrl: target.upload_url, uploadId: target.job_id, expiresAt };
  },
});
