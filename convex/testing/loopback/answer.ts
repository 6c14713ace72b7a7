/** Runs in the edge runtime: an app in convex-test, answering as a Convex deployment does. */
import type { TestConvex } from "convex-test";
import { makeFunctionReference } from "convex/server";
import { ConvexError, convexToJson, jsonToConvex, type JSONValue, type Value } from "convex/values";

type App = Pick<TestConvex<any>, "query" | "mutation" | "action" | "fetch">;
type Run = (of: unknown, args: unknown) => Promise<Value | undefined>;

interface Call {
  path: string;
  args: [Record<string, JSONValue>];
}

interface Answered {
  status: number;
  headers: Record<string, string>;
  body: string;
}

/**
 * Has the app answer: functions under /api as ConvexHttpClient calls them, else HTTP actions.
 *
 * `signedIn` gives the app as the user of its page sees it.
 */
export function serve(app: TestConvex<any>, signedIn: () => Promise<App> = () => Promise.resolve(app)) {
  Object.assign(globalThis, {
    answer: async (path: string, init: RequestInit) => answer(await signedIn(), path, init),
  });
}

async function answer(app: App, path: string, init: RequestInit): Promise<Answered> {
  const kind = /^\/api\/(query|mutation|action)$/.exec(path)?.[1];
  if (kind) return json(await call(app, kind as "query" | "mutation" | "action", String(init.body)));
  const response = await app.fetch(path, init);
  return {
    status: response.status,
    headers: Object.fromEntries(response.headers),
    body: await response.text(),
  };
}

async function call(app: App, kind: "query" | "mutation" | "action", body: string): Promise<object> {
  const { path, args } = JSON.parse(body) as Call;
  const given = jsonToConvex(args[0]);
  try {
    const run = app[kind] as unknown as Run; // which of the three the reference fits, the browser knows
    const value = await run(makeFunctionReference(path), given);
    return { status: "success", value: convexToJson(value ?? null), logLines: [] };
  } catch (error) {
    const errorData = error instanceof ConvexError ? { errorData: error.data as JSONValue } : {};
    return { status: "error", errorMessage: String(error), ...errorData, logLines: [] };
  }
}

function json(body: object): Answered {
  return { status: 200, headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}
