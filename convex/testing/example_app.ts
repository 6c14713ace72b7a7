/** The example app in convex-test, with the component in it. */
import { convexTest, type TestConvex } from "convex-test";
import { httpRouter } from "convex/server";
import { VideoJobs } from "../src/client/index.js";
import { components } from "../example/convex/_generated/api.js";
import schema from "../example/convex/schema.js";
import { register } from "../src/test.js";

/** convex-test does not mount what a component has in its own http.ts: the same handler, by the app. */
const http = httpRouter();
http.route({
  path: "/video/webhook",
  method: "POST",
  handler: new VideoJobs(components.videoJobs).webhook(),
});

const modules = {
  ...import.meta.glob(["../example/convex/**/*.{js,ts}", "!**/convex.config.ts"]),
  "../example/convex/http.ts": () => Promise.resolve({ default: http }),
};

/** A fresh deployment of the example. */
export function deployExample(): TestConvex<typeof schema> {
  const t = convexTest(schema, modules);
  register(t);
  return t;
}
