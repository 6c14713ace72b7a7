/** The component's own route: `POST <httpPrefix>webhook`. */
import { httpRouter } from "convex/server";
import { api } from "./_generated/api.js";
import { httpAction } from "./_generated/server.js";
import { answerWebhook } from "./receiver.js";

const http = httpRouter();

http.route({
  path: "/webhook",
  method: "POST",
  handler: httpAction((ctx, request) =>
    answerWebhook(request, (signed) => ctx.runMutation(api.webhook.receive, signed)),
  ),
});

export default http;
