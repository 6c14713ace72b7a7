/**
 * What `npm pack` would publish: all that the exports map names, and nothing that is ours alone.
 *
 * Then the package is installed elsewhere, without our sources around, and each entry is imported.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "stillreel-convex-"));
const { exports: entries, name } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

try {
  // The script `prepack` builds, and its words would be in the JSON.
  execFileSync("npm", ["run", "--silent", "build"], { cwd: root, stdio: "inherit" });
  const told = execFileSync("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", folder], {
    cwd: root,
  });
  const [{ filename, files }] = JSON.parse(told.toString());
  const paths = files.map((file) => file.path);
  checkContent(paths);
  checkEntries(join(folder, filename));
  process.stdout.write(`${filename}: ${paths.length} files, every entry loads\n`);
} finally {
  rmSync(folder, { recursive: true });
}

function checkContent(paths) {
  const wanted = new Set(["README.md", "LICENSE", "CHANGELOG.md", "package.json"]);
  for (const entry of Object.values(entries)) {
    for (const target of typeof entry === "string" ? [entry] : Object.values(entry)) {
      wanted.add(target.replace("./", ""));
    }
  }
  const missing = [...wanted].filter((path) => !paths.includes(path));
  const allowed = /^(dist|src)\/|^(README\.md|LICENSE|CHANGELOG\.md|package\.json)$/;
  const foreign = paths.filter((path) => !allowed.test(path) || /\.test\.|node_modules/.test(path));
  if (missing.length || foreign.length) {
    throw new Error(`missing: ${missing.join(", ") || "-"}; not to be published: ${foreign.join(", ") || "-"}`);
  }
}

function checkEntries(archive) {
  const home = join(folder, "app", "node_modules", name);
  mkdirSync(home, { recursive: true });
  execFileSync("tar", ["-xzf", archive, "-C", home, "--strip-components=1"]);
  // What an app has installed beside it.
  for (const peer of ["convex", "react", "react-dom", "standardwebhooks", "@stablelib", "fast-sha256"]) {
    symlinkSync(join(root, "node_modules", peer), join(folder, "app", "node_modules", peer));
  }
  const loadable = Object.entries(entries)
    .filter(([, entry]) => entry.default?.endsWith(".js"))
    .map(([path]) => name + path.slice(1));
  const script = loadable.map((entry) => `await import(${JSON.stringify(entry)});`).join("\n");
  writeFileSync(join(folder, "app", "load.mjs"), script);
  execFileSync(process.execPath, ["load.mjs"], { cwd: join(folder, "app"), stdio: "inherit" });
}
