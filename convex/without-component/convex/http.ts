import { httpRouter } from "convex/server";
import { httpAction } from "./_generated/server";
import { internal } from "./_generated/api";

const http = httpRouter();

http.route({
  path: "/api/webhooks/video-complete",
  method: "POST",
  handler: httpAction(async (ctx, request) => {
    const authHeader = request.headers.get("X-Webhook-Secret");
    if (authHeader !== process.env.WEBHOOK_SECRET) {
      return new Response("Unauthorized", { status: 401 });
    }

    const body = await request.json();
    const { job_id, status, video_url, error } = body;

    if (status === "completed") {
      await ctx.runMutation(internal.videoJobs.completeJob, {
        externalJobId: job_id,
        videoUrl: video_url,
      });
    } else if (status === "failed") {
      await ctx.runMutation(internal.videoJobs.failJob, {
        externalJobId: job_id,
        errorMessage: error,
      });
    }

    return new Response("OK", { status: 200 });
  }),
});

export default http;
