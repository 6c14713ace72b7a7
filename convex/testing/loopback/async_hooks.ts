/** `node:async_hooks` inside the edge runtime, which has its class as a global. */
declare const globalThis: { AsyncLocalStorage: unknown };

export const AsyncLocalStorage = globalThis.AsyncLocalStorage;
