import { convexTest } from "convex-test";
import { mutationGeneric } from "convex/server";
import schema from "../../without-component/convex/schema.js";
import { serve } from "./answer.js";

/** convex-test says that files are where nothing is; a real deployment serves them, as FILES_URL does. */
const NOWHERE = /https:\/\/some-deployment\.convex\.cloud\/api\/storage\/[^"]+/;
const send = globalThis.fetch;
globalThis.fetch = (input, init) => {
  const body = String(init?.body).replace(NOWHERE, process.env.FILES_URL!);
  return send(input, { ...init, body });
};

/** Stores a picture and a user, as sign-in and upload of a real app do. */
const arrive = mutationGeneric({
  handler: async (ctx) => ({
    userId: await ctx.db.insert("users", {}),
    sourceImageId: await ctx.storage.store(new Blob(["png"])),
  }),
});

const app = convexTest(schema, {
  ...import.meta.glob("../../without-component/convex/**/*.{js,ts}"),
  "../../without-component/convex/testing.ts": () => Promise.resolve({ arrive }),
});

// convex-test counts its ids from one: the first user is whoever arrives first.
serve(app, async () => {
  const user = await app.run((ctx) => ctx.db.query("users").first());
  return user ? app.withIdentity({ subject: `${user._id}|session` }) : app;
});
