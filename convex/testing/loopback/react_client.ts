/** A ConvexReactClient for a deployment on loopback: queries are asked again every half second. */
import { ConvexHttpClient } from "convex/browser";
import type { ConvexReactClient } from "convex/react";
import { getFunctionName, type FunctionReference } from "convex/server";

const EVERY = 500;
type Query = FunctionReference<"query">;

interface Watched {
  value?: unknown;
  error?: Error;
  listeners: Set<() => void>;
  timer?: ReturnType<typeof setInterval>;
}

/** The part of it that hooks use. */
export function loopbackClient(url: string): ConvexReactClient {
  const http = new ConvexHttpClient(url, { skipConvexDeploymentUrlCheck: true, logger: false });
  const watches = new Map<string, Watched>();

  const ask = async (watched: Watched, query: Query, args: Record<string, unknown>) => {
    const before = JSON.stringify([watched.value, watched.error?.message]);
    try {
      Object.assign(watched, { value: await http.query(query, args), error: undefined });
    } catch (error) {
      Object.assign(watched, { error });
    }
    if (JSON.stringify([watched.value, watched.error?.message]) !== before) {
      for (const tell of watched.listeners) tell();
    }
  };

  const client = {
    watchQuery(query: Query, args: Record<string, unknown> = {}) {
      const key = JSON.stringify([getFunctionName(query), args]);
      const watched = watches.get(key) ?? { listeners: new Set() };
      watches.set(key, watched);
      return {
        onUpdate(tell: () => void) {
          watched.listeners.add(tell);
          if (!watched.timer) {
            void ask(watched, query, args);
            watched.timer = setInterval(() => void ask(watched, query, args), EVERY);
          }
          return () => {
            watched.listeners.delete(tell);
            if (watched.listeners.size) return;
            clearInterval(watched.timer);
            watched.timer = undefined;
          };
        },
        localQueryResult() {
          if (watched.error) throw watched.error;
          return watched.value;
        },
        localQueryLogs: () => undefined,
        journal: () => undefined,
      };
    },
    mutation: (name: FunctionReference<"mutation">, args: Record<string, unknown>) => http.mutation(name, args),
    action: (name: FunctionReference<"action">, args: Record<string, unknown>) => http.action(name, args),
    query: (name: Query, args: Record<string, unknown>) => http.query(name, args),
  };
  return client as unknown as ConvexReactClient;
}
