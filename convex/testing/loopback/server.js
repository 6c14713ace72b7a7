/**
 * `node testing/loopback/server.js PORT APP [FOLDER]`: an app without a Convex deployment.
 *
 * Its functions, and the component, run in convex-test in the edge runtime, as in tests, behind the
 * HTTP interface of a deployment. APP is one of the modules beside this one: `example`,
 * `without_component`, `without_api`. FOLDER has a built page. The environment is the app's.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { EdgeVM } from "@edge-runtime/vm";
import { build } from "vite";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const [port, app, folder] = process.argv.slice(2);
const url = `http://127.0.0.1:${port}`;
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css" };

const { output } = await build({
  configFile: false,
  logLevel: "error",
  define: { global: "globalThis", "globalThis.process.env": "ENVIRONMENT", "process.env": "ENVIRONMENT" },
  resolve: {
    alias: [
      { find: "node:async_hooks", replacement: here("async_hooks.ts") },
      { find: "stillreel-convex/convex.config.js", replacement: here("../../src/component/convex.config.ts") },
      { find: /^stillreel-convex$/, replacement: here("../../src/client/index.ts") },
    ],
  },
  build: {
    write: false,
    minify: false,
    target: "es2022",
    rollupOptions: {
      input: here(`${app}.ts`),
      output: { format: "iife", inlineDynamicImports: true },
    },
  },
});

const env = { CONVEX_SITE_URL: url, ...process.env };
const edge = new EdgeVM({
  extend: (context) => Object.assign(context, { AsyncLocalStorage, ENVIRONMENT: env }),
});
edge.evaluate(output[0].code);

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString();
  const path = new URL(request.url, url).pathname;
  try {
    const file = request.method === "GET" && folder ? await fileAt(path) : null;
    const { method, headers } = request;
    const answer = file ?? (await edge.context.answer(path, { method, headers, body: body || undefined }));
    response.writeHead(answer.status, answer.headers).end(answer.body);
  } catch (error) {
    process.stderr.write(`${error.stack}\n`);
    response.writeHead(500).end();
  }
});
server.listen(Number(port), "127.0.0.1", () => process.stdout.write(`ready: ${url}\n`));

async function fileAt(path) {
  const name = normalize(path === "/" ? "/index.html" : path);
  try {
    const content = await readFile(join(folder, name));
    return { status: 200, headers: { "content-type": TYPES[extname(name)] ?? "text/plain" }, body: content };
  } catch (error) {
    if (error.code === "ENOENT") return null;
    throw error;
  }
}
