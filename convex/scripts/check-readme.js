/** Compiles the README's start as an app that was copied from it: blocks that begin with a path. */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const app = join(root, "build", "readme");
const START = ["convex/convex.config.ts", "convex/videos.ts", "src/Video.tsx"];

rmSync(app, { recursive: true, force: true });
const readme = readFileSync(join(root, "README.md"), "utf8");
const found = [...readme.matchAll(/^```tsx?\n\/\/ (\S+)\n([\s\S]*?)^```$/gm)];
for (const [, path, code] of found) write(path, code);
const names = found.map(([, path]) => path);
if (names.join() !== START.join()) throw new Error(`the README starts with ${names}, not with ${START}`);

cpSync(join(root, "example/convex/_generated"), join(app, "convex/_generated"), { recursive: true });
const api = readFileSync(join(app, "convex/_generated/api.d.ts"), "utf8");
write("convex/_generated/api.d.ts", api.replace(/import type \* as crons.*\n/, "").replace("crons: typeof crons; ", ""));
write("convex/schema.ts", 'import { defineSchema } from "convex/server";\nexport default defineSchema({});\n');
write("tsconfig.json", JSON.stringify({ extends: "../../tsconfig.json", include: ["."] }));
execFileSync("npx", ["--no-install", "tsc", "--noEmit", "--project", app], { cwd: root, stdio: "inherit" });

function write(path, text) {
  mkdirSync(dirname(join(app, path)), { recursive: true });
  writeFileSync(join(app, path), text);
}
