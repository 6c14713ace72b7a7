/** For tests of apps with convex-test: `register(t)`, and `components.videoJobs` works. */
/// <reference types="vite/client" />
import type { TestConvexRoot } from "convex-test";
import type { ComponentApi } from "./component/_generated/component.js";
import schema from "./component/schema.js";

const modules = import.meta.glob(["./component/**/*.ts", "!./component/**/*.test.ts"]);

/** Registers the component as `name`, the name that it is installed under. */
export function register(t: TestConvexRoot<any>, name = "videoJobs"): ComponentApi {
  return t.registerComponent<ComponentApi>(name, schema, modules);
}

export default { register, schema, modules };
